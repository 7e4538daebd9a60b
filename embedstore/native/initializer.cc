#include "native/initializer.h"

#include <algorithm>

#include "native/hash.h"

namespace embedstore {
namespace {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

float from_half(uint32_t half, float scale) noexcept {
  const auto centred = static_cast<int32_t>(half >> 8) - (1 << 23);
  return static_cast<float>(centred) * 0x1p-23f * scale;
}

}  // namespace

void Initializer::fill(uint64_t id, float* row, uint32_t dim) const noexcept {
  if (kind != Kind::kUniform) {
    std::fill_n(row, dim, kind == Kind::kConstant ? scale : 0.0f);
    return;
  }
  const uint64_t start = mix64(id ^ mix64(seed));
  for (uint32_t d = 0; d < dim; d += 2) {
    const uint64_t bits = mix64(start + (d / 2 + 1) * kGolden);
    row[d] = from_half(static_cast<uint32_t>(bits), scale);
    if (d + 1 < dim) row[d + 1] = from_half(static_cast<uint32_t>(bits >> 32), scale);
  }
}

}  // namespace embedstore
