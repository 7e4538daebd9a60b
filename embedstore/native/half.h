// float32 to IEEE binary16 (round to nearest even, overflow to infinity) and back (exact): the same result with and
// without the processor's instructions. The side of the halves, and `out` of from_half, need not be aligned. Callable
// from any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace embedstore {

inline constexpr float kHalfMax = 65504.0f;

struct HalfKernels {
  void (*to)(const float* values, size_t count, void* out) noexcept;
  void (*from)(const void* halves, size_t count, void* out) noexcept;
};

extern const HalfKernels kHalfPortable;
// The fastest that this processor can run.
const HalfKernels& half_kernels() noexcept;

inline void to_half(const float* values, size_t count, void* out) noexcept { half_kernels().to(values, count, out); }
inline void from_half(const void* halves, size_t count, void* out) noexcept { half_kernels().from(halves, count, out); }
uint16_t half_of(float value) noexcept;

// Without a branch and without arithmetic on subnormal floats, which some threads flush to zero.
inline float float_of(uint16_t half) noexcept {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7FFF;
  const uint32_t quiet = magnitude > 0x7C00 ? 0x400000 : 0;
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7C00 ? 0x70000000 : 0x38000000);
  const auto subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return std::bit_cast<float>(sign | quiet | (magnitude < 0x400 ? subnormal : normal));
}

}  // namespace embedstore
