#include "native/initializer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "native/hash.h"

namespace embedstore {
namespace {

static_assert(std::endian::native == std::endian::little, "the low half of a word is the first of a pair");

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr uint32_t kBlock = 64;  // numbers made at a time, on the stack
constexpr double kWithinTwoDeviations = 0.95449973610364158;

// Words, read as their halves; a union, as a copy of 256 bytes costs as much as making them.
union Draws {
  uint64_t words[kBlock / 2];
  uint32_t halves[kBlock];
};

// For the numbers `first` ... `first + count - 1`; `first` is even.
EMBEDSTORE_INLINE void draw(uint64_t start, uint32_t first, uint32_t count, Draws& draws) noexcept {
  const uint64_t before = start + (uint64_t{first} / 2 + 1) * kGolden;
  const uint32_t num_words = (count + 1) / 2;
  for (uint64_t k = 0; k < num_words; ++k) draws.words[k] = mix64(before + k * kGolden);
}

EMBEDSTORE_INLINE void fill_uniform(uint64_t start, float scale, float* row, uint32_t dim) noexcept {
  Draws draws;
  for (uint32_t first = 0; first < dim; first += kBlock) {
    const uint32_t count = std::min(kBlock, dim - first);
    draw(start, first, count, draws);
    float* out = row + first;  // an index that cannot wrap around, or the loop stays scalar
    for (uint32_t i = 0; i < count; ++i) {
      const auto centred = static_cast<int32_t>(draws.halves[i] >> 8) - (1 << 23);
      out[i] = static_cast<float>(centred) * 0x1p-23f * scale;
    }
  }
}

template <size_t kSize>
EMBEDSTORE_INLINE double polynomial(const double (&coefficients)[kSize], double x) noexcept {
  double sum = coefficients[kSize - 1];
  for (size_t i = kSize - 1; i-- > 0;) sum = sum * x + coefficients[i];
  return sum;
}

// Of a positive normal number.
EMBEDSTORE_INLINE double natural_log(double p) noexcept {
  constexpr double kSeries[] = {1.0, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15};
  auto bits = std::bit_cast<uint64_t>(p);
  auto exponent = static_cast<int>(bits >> 52) - 1023;
  auto mantissa = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  if (mantissa >= 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  return exponent * 0.6931471805599453 + 2.0 * s * polynomial(kSeries, s * s);
}

constexpr double kCentral = 0.425;
constexpr double kA[] = {3.3871327179, 50.434271938, 159.29113202, 59.109374720};
constexpr double kB[] = {1.0, 17.895169469, 78.757757664, 67.187563600};
constexpr double kC[] = {1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103};
constexpr double kD[] = {1.0, 0.73700164250, 0.12021132975};

EMBEDSTORE_INLINE double standard_in_the_middle(double q) noexcept {
  const double r = 0.180625 - q * q;
  return q * (polynomial(kA, r) / polynomial(kB, r));
}

EMBEDSTORE_INLINE double standard_in_a_tail(double q) noexcept {
  const double r = std::sqrt(-natural_log(0.5 - std::fabs(q)));
  return std::copysign(polynomial(kC, r - 1.6) / polynomial(kD, r - 1.6), q);
}

// Every number is made as if it lay in the middle, all at once; one in seven is then made again.
EMBEDSTORE_INLINE void fill_normal(uint64_t start, float scale, double within, double limit, float* row,
                                   uint32_t dim) noexcept {
  Draws draws;
  double q[kBlock], values[kBlock];
  for (uint32_t first = 0; first < dim; first += kBlock) {
    const uint32_t count = std::min(kBlock, dim - first);
    draw(start, first, count, draws);
    float* out = row + first;
    for (uint32_t i = 0; i < count; ++i) {
      q[i] = (static_cast<double>(draws.halves[i]) - 2147483647.5) * 0x1p-32 * within;
      values[i] = standard_in_the_middle(q[i]);
    }
    for (uint32_t i = 0; i < count; ++i)
      if (std::fabs(q[i]) > kCentral) values[i] = standard_in_a_tail(q[i]);
    for (uint32_t i = 0; i < count; ++i)
      out[i] = static_cast<float>(std::min(std::max(values[i], -limit), limit)) * scale;
  }
}

struct Kernels {
  void (*uniform)(uint64_t start, float scale, float* row, uint32_t dim) noexcept;
  void (*normal)(uint64_t start, float scale, double within, double limit, float* row, uint32_t dim) noexcept;
};

#define EMBEDSTORE_KERNELS(SET, TARGET)                                                          \
  TARGET void uniform_##SET(uint64_t start, float scale, float* row, uint32_t dim) noexcept {    \
    fill_uniform(start, scale, row, dim);                                                        \
  }                                                                                              \
  TARGET void normal_##SET(uint64_t start, float scale, double within, double limit, float* row, \
                           uint32_t dim) noexcept {                                              \
    fill_normal(start, scale, within, limit, row, dim);                                          \
  }                                                                                              \
  constexpr Kernels k_##SET = {uniform_##SET, normal_##SET};

EMBEDSTORE_KERNELS(portable, )
#if EMBEDSTORE_DISPATCH
EMBEDSTORE_KERNELS(avx2, EMBEDSTORE_AVX2)
EMBEDSTORE_KERNELS(avx512, EMBEDSTORE_AVX512)
#endif

const Kernels& kernels([[maybe_unused]] InstructionSet set) noexcept {
#if EMBEDSTORE_DISPATCH
  if (set == InstructionSet::kAvx512) return k_avx512;
  if (set == InstructionSet::kAvx2) return k_avx2;
#endif
  return k_portable;
}

}  // namespace

void Initializer::fill(uint64_t id, float* row, uint32_t dim, InstructionSet set) const noexcept {
  switch (kind) {
    case Kind::kZeros:
    case Kind::kConstant:
      std::fill_n(row, dim, kind == Kind::kConstant ? scale : 0.0f);
      return;
    case Kind::kUniform:
      kernels(set).uniform(mix64(id ^ mix64(seed)), scale, row, dim);
      return;
    case Kind::kNormal:
      kernels(set).normal(mix64(id ^ mix64(seed)), scale, 1.0, 10.0, row, dim);
      return;
    case Kind::kTruncatedNormal:
      kernels(set).normal(mix64(id ^ mix64(seed)), scale, kWithinTwoDeviations, 2.0, row, dim);
      return;
  }
}

}  // namespace embedstore
