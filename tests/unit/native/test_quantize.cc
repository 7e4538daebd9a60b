#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "native/half.h"
#include "native/quantize.h"

using namespace embedstore;
using embedstore::test::Random;

namespace {

constexpr RowType kPacked[] = {RowType::kFloat16, RowType::kInt8, RowType::kInt4};

double uniform(Random& random) { return (static_cast<double>(random.next() >> 11) + 0.5) * 0x1p-53; }

double gaussian(Random& random) {
  const double radius = std::sqrt(-2 * std::log(uniform(random)));
  return radius * std::cos(6.283185307179586 * uniform(random));
}

std::vector<float> through(RowType type, const std::vector<float>& values) {
  const auto dim = static_cast<uint32_t>(values.size());
  std::vector<std::byte> packed(packed_bytes(type, dim));
  std::vector<float> out(dim);
  encoder(type)(values.data(), dim, packed.data());
  decoder(type, RowType::kFloat32)(packed.data(), dim, out.data());
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

// Groups of every kind that a trained table can hold, and some that none should.
std::vector<float> wild_row(Random& random, uint32_t dim) {
  const double spread = std::pow(10.0, uniform(random) * 14 - 9);
  const double middle = static_cast<int>(random.below(3)) - 1;
  const double offset = middle * spread * std::pow(10.0, uniform(random) * 9 - 4);
  const uint64_t kind = random.below(10);
  std::vector<float> row(dim);
  for (float& value : row) {
    double x = offset + spread * (kind < 5 ? gaussian(random) : uniform(random) - 0.5);
    if (kind == 6) x = offset;
    if (kind == 7) x = random.below(2) != 0 ? offset : offset + spread;
    if (kind == 8) x *= 1e-36;
    if (kind == 9 && random.below(8) == 0) x = (random.below(2) != 0 ? 1 : -1) * std::pow(10.0, uniform(random) * 38);
    value = static_cast<float>(std::clamp(x, -3.4e38, 3.4e38));
  }
  return row;
}

struct Errors {
  double of_all;   // sqrt(sum of squared errors / sum of squares)
  double of_rows;  // mean over rows of the same
};

Errors gaussian_errors(RowType type, double scale) {
  Random random{2024};
  double error_sum = 0, square_sum = 0, rows_sum = 0;
  constexpr int kRows = 20000;
  for (int i = 0; i < kRows; ++i) {
    std::vector<float> row(64);
    for (float& value : row) value = static_cast<float>(scale * gaussian(random));
    const std::vector<float> back = through(type, row);
    double error = 0, square = 0;
    for (size_t d = 0; d < row.size(); ++d) {
      error += (double{row[d]} - back[d]) * (double{row[d]} - back[d]);
      square += double{row[d]} * row[d];
    }
    error_sum += error;
    square_sum += square;
    rows_sum += std::sqrt(error / square);
  }
  return {std::sqrt(error_sum / square_sum), rows_sum / kRows};
}

}  // namespace

TEST(packed_gaussian_rows_stay_within_their_error_bounds) {
  for (const double scale : {1.0, 0.05, 1000.0}) {
    const Errors int8 = gaussian_errors(RowType::kInt8, scale);
    const Errors int4 = gaussian_errors(RowType::kInt4, scale);
    const Errors half = gaussian_errors(RowType::kFloat16, scale);
    std::printf("  scale %g: relative L2 error int8 %.4f %% (rows %.4f %%), int4 %.3f %% (%.3f %%), fp16 %.4f %%\n",
                scale, 100 * int8.of_all, 100 * int8.of_rows, 100 * int4.of_all, 100 * int4.of_rows, 100 * half.of_all);
    CHECK(int8.of_all <= 0.0046 && int8.of_rows <= 0.0046);
    CHECK(int4.of_all <= 0.079 && int4.of_rows <= 0.079);
    CHECK(half.of_all <= 0x1p-11);
  }
}

TEST(packed_numbers_are_off_by_half_a_step_at_most) {
  Random random{7};
  for (int i = 0; i < 50000; ++i) {
    const auto dim = static_cast<uint32_t>(1 + random.below(70));
    const std::vector<float> row = wild_row(random, dim);
    for (const RowType type : {RowType::kInt8, RowType::kInt4}) {
      const double levels = type == RowType::kInt8 ? 255 : 15;
      const std::vector<float> back = through(type, row);
      for (uint32_t begin = 0; begin < dim; begin += kQuantGroup) {
        const uint32_t end = std::min(begin + kQuantGroup, dim);
        const auto limited = [&](uint32_t d) { return std::clamp(double{row[d]}, -65504.0, 65504.0); };
        double low = limited(begin), high = low;
        for (uint32_t d = begin; d < end; ++d) {
          low = std::min(low, limited(d));
          high = std::max(high, limited(d));
        }
        const double place = std::max(0x1p-24, std::abs(low) * 0x1.01p-10);
        const double range = (high - low + place / 2) / levels * (1 + 0x1p-11) * (1 + 0.2 / levels);
        const double step = std::max(range + (range < 0x1p-13 ? 0x1p-24 : 0), place);
        for (uint32_t d = begin; d < end; ++d) CHECK(std::abs(limited(d) - back[d]) <= step / 2 * (1 + 0x1p-18));
      }
    }
  }
}

TEST(what_was_decoded_is_encoded_to_the_same_bits) {
  Random random{11};
  for (int i = 0; i < 200000; ++i) {
    const auto dim = static_cast<uint32_t>(1 + random.below(70));
    const std::vector<float> row = wild_row(random, dim);
    for (const RowType type : kPacked) {
      const std::vector<float> once = through(type, row);
      CHECK(same_bits(through(type, once), once));
    }
  }
}

TEST(what_is_kept_is_finite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  for (const RowType type : kPacked) {
    for (const uint32_t dim : {1u, 31u, 32u, 33u, 128u}) {
      std::vector<float> row(dim, nan);
      for (const float value : through(type, row)) CHECK(value == 0);
      std::fill(row.begin(), row.end(), infinite);
      for (const float value : through(type, row)) CHECK(value == 65504);
      std::fill(row.begin(), row.end(), -3e38f);
      for (const float value : through(type, row)) CHECK(value == -65504);
      for (uint32_t d = 0; d < dim; ++d) row[d] = d % 3 == 0 ? nan : d % 3 == 1 ? infinite : -infinite;
      const std::vector<float> mixed = through(type, row);
      std::vector<uint16_t> halves(dim);
      std::vector<std::byte> packed(packed_bytes(type, dim));
      encoder(type)(row.data(), dim, packed.data());
      decoder(type, RowType::kFloat16)(packed.data(), dim, halves.data());
      for (uint32_t d = 0; d < dim; ++d) {
        CHECK(std::abs(mixed[d]) <= 65504);
        CHECK(halves[d] == half_of(mixed[d]) && (halves[d] & 0x7C00) != 0x7C00);
      }
      CHECK(same_bits(through(type, mixed), mixed));
    }
  }
}

TEST(all_instruction_sets_pack_and_unpack_to_the_same_bits) {
  constexpr auto kGuard = static_cast<std::byte>(0xA5);
  Random random{13};
  const auto sets = quant_kernels();
  CHECK(std::strcmp(sets.front().name, "portable") == 0);
  for (int i = 0; i < 20000; ++i) {
    const auto dim = static_cast<uint32_t>(1 + random.below(200));
    std::vector<float> row = wild_row(random, dim);
    if (random.below(4) == 0) row[random.below(dim)] = std::bit_cast<float>(static_cast<uint32_t>(random.next()));
    std::vector<std::byte> in(4 * dim + 1);  // one byte off every alignment
    std::memcpy(in.data() + 1, row.data(), 4 * dim);
    for (size_t type = 0; type < 4; ++type) {
      const size_t bytes = packed_bytes(static_cast<RowType>(type), dim);
      std::vector<std::byte> packed, floats, halves;
      for (const QuantKernels& set : sets) {
        std::vector<std::byte> p(bytes + 2, kGuard), f(4 * dim + 2, kGuard), h(2 * dim + 2, kGuard);
        set.encode[type](in.data() + 1, dim, p.data() + 1);
        set.to_float[type](p.data() + 1, dim, f.data() + 1);
        // float32 rows lie aligned in the table
        const std::byte* source = type == 0 ? reinterpret_cast<const std::byte*>(row.data()) : p.data() + 1;
        set.to_half[type](source, dim, h.data() + 1);
        CHECK(p.front() == kGuard && p.back() == kGuard && f.front() == kGuard && f.back() == kGuard);
        CHECK(h.front() == kGuard && h.back() == kGuard);
        if (&set == &sets.front()) {
          packed = p, floats = f, halves = h;
        } else if (type == 0 && std::any_of(row.begin(), row.end(), [](float x) { return std::isnan(x); })) {
          continue;  // float32 rows keep a NaN; its payload in float16 is the processor's
        } else {
          CHECK(packed == p && floats == f && halves == h);
        }
      }
    }
  }
}

TEST(halves_come_back_exactly_with_and_without_hardware) {
  std::vector<uint16_t> halves(0x10000);
  for (uint32_t half = 0; half < halves.size(); ++half) halves[half] = static_cast<uint16_t>(half);
  std::vector<float> portable(halves.size()), fastest(halves.size());
  kHalfPortable.from(halves.data(), halves.size(), portable.data());
  from_half(halves.data(), halves.size(), fastest.data());
  CHECK(same_bits(portable, fastest));
  for (uint32_t half = 0; half < halves.size(); ++half) {
    const float value = portable[half];
    CHECK(std::signbit(value) == (half >> 15 != 0));
    if ((half & 0x7FFF) > 0x7C00) {
      CHECK(std::isnan(value));
    } else {
      CHECK(half_of(value) == half);
    }
  }
}
