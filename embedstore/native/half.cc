#include "native/half.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace embedstore {
namespace {

void to_half_portable(const float* values, size_t count, void* out) noexcept {
  auto* bytes = static_cast<uint8_t*>(out);
  for (size_t i = 0; i < count; ++i) {
    const uint16_t half = half_of(values[i]);
    std::memcpy(bytes + 2 * i, &half, 2);
  }
}

void from_half_portable(const void* halves, size_t count, void* out) noexcept {
  const auto* in = static_cast<const uint8_t*>(halves);
  auto* bytes = static_cast<uint8_t*>(out);
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, in + 2 * i, 2);
    const float value = float_of(half);
    std::memcpy(bytes + 4 * i, &value, 4);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) void to_half_f16c(const float* values, size_t count, void* out) noexcept {
  auto* bytes = static_cast<uint8_t*>(out);
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 2 * i), halves);
  }
  to_half_portable(values + i, count - i, bytes + 2 * i);
}

__attribute__((target("avx,f16c"))) void from_half_f16c(const void* halves, size_t count, void* out) noexcept {
  const auto* in = static_cast<const uint8_t*>(halves);
  auto* bytes = static_cast<uint8_t*>(out);
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i)));
    _mm256_storeu_ps(reinterpret_cast<float*>(bytes + 4 * i), values);
  }
  from_half_portable(in + 2 * i, count - i, bytes + 4 * i);
}

constexpr HalfKernels kHalfF16c = {to_half_f16c, from_half_f16c};
#endif

const HalfKernels& choose() noexcept {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c")) return kHalfF16c;
#endif
  return kHalfPortable;
}

}  // namespace

const HalfKernels kHalfPortable = {to_half_portable, from_half_portable};

const HalfKernels& half_kernels() noexcept {
  static const HalfKernels& chosen = choose();
  return chosen;
}

uint16_t half_of(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | ((magnitude >> 13) & 0x1FF));
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 lines the mantissa up so that the addition itself rounds to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000));
  }
  const uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

}  // namespace embedstore
