#include "native/admission.h"

#include <algorithm>

#include "native/hash.h"
#include "native/sketch.h"

namespace embedstore {
namespace {

constexpr unsigned kBits = 32;
constexpr uint64_t kNeededMax = 0xFFFFFFFF;

// The largest n below 2^32 with q^n > v, plus one.
uint64_t first_success(double q, double v) noexcept {
  double powers[kBits];
  unsigned count = 0;
  for (double power = q; count < kBits && power > v; power *= power) powers[count++] = power;
  uint64_t failures = 0;
  double chance = 1;
  for (unsigned j = count; j-- > 0;) {
    const double longer = chance * powers[j];
    if (!(longer > v)) continue;
    chance = longer;
    failures += uint64_t{1} << j;
  }
  return std::min(failures + 1, kNeededMax);
}

}  // namespace

uint64_t Admission::needed(uint64_t id) const noexcept {
  if (kind == Kind::kAll) return 0;
  if (kind == Kind::kMinCount) return std::max<uint64_t>(min_count, 1);
  const uint64_t draw = mix64(id ^ mix64(seed)) >> 11;
  const double v = static_cast<double>((uint64_t{1} << 53) - draw) * 0x1p-53;
  return first_success(1 - p, v);
}

size_t Admission::sketch_bytes_max(uint32_t num_chunks) const noexcept {
  if (!counts()) return 0;
  const uint64_t total = memory_bytes == 0 ? kMemoryBytesDefault : memory_bytes;
  return std::max<size_t>(total / num_chunks, Sketch::kBytesMin);
}

}  // namespace embedstore
