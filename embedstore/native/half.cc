#include "native/half.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace embedstore {
namespace {

void to_half_portable(const float* values, size_t count, uint8_t* out) noexcept {
  for (size_t i = 0; i < count; ++i) {
    const uint16_t half = half_of(values[i]);
    std::memcpy(out + 2 * i, &half, 2);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) void to_half_f16c(const float* values, size_t count, uint8_t* out) noexcept {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), halves);
  }
  to_half_portable(values + i, count - i, out + 2 * i);
}
#endif

}  // namespace

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

void to_half(const float* values, size_t count, void* out) noexcept {
#if defined(__x86_64__)
  static const bool hardware = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  if (hardware) return to_half_f16c(values, count, static_cast<uint8_t*>(out));
#endif
  to_half_portable(values, count, static_cast<uint8_t*>(out));
}

}  // namespace embedstore
