#include "native/quantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "native/half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Each kernel is written once and compiled for several instruction sets; one of them is chosen when the program starts.
#define EMBEDSTORE_INLINE inline __attribute__((always_inline))
// GCC takes short loops apart before its vectoriser sees them.
#if defined(__GNUC__) && !defined(__clang__)
#define EMBEDSTORE_ROLLED _Pragma("GCC unroll 1")
#else
#define EMBEDSTORE_ROLLED
#endif

namespace embedstore {
namespace {

constexpr uint32_t kGroup = kQuantGroup;
constexpr size_t kConstantBytes = 4;     // scale and bias of a group
constexpr uint32_t kPiece = 4 * kGroup;  // numbers on their way between float16 and the packed form
constexpr float kHalfMinNormal = 0x1p-14f;
constexpr float kHalfUnit = 0x1p-24f;
constexpr float kToInteger = 0x1p23f;  // added to a float in [0, 2^22), it rounds it to nearest even in its last bits

using LooseFloat __attribute__((aligned(1), may_alias)) = float;

constexpr size_t groups_of(uint32_t dim) noexcept { return (size_t{dim} + kGroup - 1) / kGroup; }

// A float's bits as a signed integer in the same order.
EMBEDSTORE_INLINE int32_t ordered(float value) noexcept {
  const auto bits = std::bit_cast<int32_t>(value);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

EMBEDSTORE_INLINE float from_ordered(int32_t key) noexcept {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF));
}

// Copies numbers, made finite and limited.
EMBEDSTORE_INLINE void limited(const LooseFloat* values, uint32_t count, float* out) noexcept {
  for (uint32_t i = 0; i < count; ++i) {
    const float value = values[i] == values[i] ? values[i] : 0.0f;
    const float above = value > -kHalfMax ? value : -kHalfMax;
    out[i] = above < kHalfMax ? above : kHalfMax;
  }
}

// float_of() for scales and biases: no NaN, no infinity, no branch.
EMBEDSTORE_INLINE float finite_of(uint16_t half) noexcept {
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t normal = exponent != 0 ? 1 : 0;
  const uint32_t mantissa = (half & 0x3FFu) | (normal << 10);
  const float unit = std::bit_cast<float>((exponent + 103 - normal) << 23);
  const float value = static_cast<float>(static_cast<int32_t>(mantissa)) * unit;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (static_cast<uint32_t>(half & 0x8000) << 16));
}

// The distance to the next number of float16 above |bias|.
EMBEDSTORE_INLINE float last_place(uint16_t bias) noexcept {
  const uint32_t exponent = (bias >> 10) & 31;
  return std::bit_cast<float>((exponent < 1 ? 103u : exponent + 102u) << 23);
}

template <uint32_t kLevels>
EMBEDSTORE_INLINE float subnormal_scale(float range) noexcept {
  constexpr auto kTop = static_cast<float>(kLevels);
  const float units = std::ceil(range / kTop * (1 / kHalfUnit));
  if (units == 0) return 0;
  const float code = (range / (units * kHalfUnit) + kToInteger) - kToInteger;
  return std::ceil(units * std::min(code, kTop) / kTop) * kHalfUnit;
}

struct Grid {
  float scale;
  float bias;
};

template <bool kF16c>
EMBEDSTORE_INLINE Grid grid_at(const uint8_t* constants) noexcept {
#if defined(__x86_64__)
  if constexpr (kF16c) {
    // As assembly, because an intrinsic would tie this function to one instruction set.
    int both;
    std::memcpy(&both, constants, sizeof both);
    __m128 floats;
    asm("vcvtph2ps %1, %0" : "=x"(floats) : "x"(_mm_cvtsi32_si128(both)));
    return {_mm_cvtss_f32(floats), _mm_cvtss_f32(_mm_shuffle_ps(floats, floats, 1))};
  }
#endif
  uint16_t halves[2];
  std::memcpy(halves, constants, sizeof halves);
  return {finite_of(halves[0]), finite_of(halves[1])};
}

template <uint32_t kLevels>
EMBEDSTORE_INLINE void codes_of(const float* x, Grid grid, float* codes) noexcept {
  constexpr auto kTop = static_cast<float>(kLevels);
  const float inverse = 1.0f / grid.scale;
  for (uint32_t i = 0; i < kGroup; ++i) {
    const float steps = (x[i] - grid.bias) * inverse;
    const float above = steps > 0 ? steps : 0.0f;
    codes[i] = (above < kTop ? above : kTop) + kToInteger;
  }
}

EMBEDSTORE_INLINE float decoded(float code, Grid grid) noexcept {
  const float value = grid.bias + grid.scale * code;
  return value < kHalfMax ? value : kHalfMax;
}

// Summed in eight lanes, in an order that does not depend on the width of the registers.
template <uint32_t kLevels>
EMBEDSTORE_INLINE float square_error(const float* x, Grid grid, float* codes) noexcept {
  codes_of<kLevels>(x, grid, codes);
  alignas(32) float lanes[8] = {};
  for (uint32_t base = 0; base < kGroup; base += 8) {
    for (uint32_t i = 0; i < 8; ++i) {
      const float error = x[base + i] - decoded(codes[base + i] - kToInteger, grid);
      lanes[i] += error * error;
    }
  }
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// x: kGroup numbers within the limits. `codes` comes back as floats above kToInteger.
template <uint32_t kLevels>
EMBEDSTORE_INLINE Grid fit(const float* x, float* codes) noexcept {
  int32_t low = ordered(x[0]);
  int32_t high = low;
  for (uint32_t i = 0; i < kGroup; ++i) {
    const int32_t key = ordered(x[i]);
    low = std::min(low, key);
    high = std::max(high, key);
  }
  const uint16_t half = half_of(from_ordered(low));
  const float bias = half == 0x8000 ? 0.0f : finite_of(half);
  const float range = std::max(from_ordered(high) - bias, 0.0f);
  const float step = range / static_cast<float>(kLevels);
  const float floor = last_place(half);
  if (step < kHalfMinNormal) {
    const Grid grid{std::max(subnormal_scale<kLevels>(range), floor), bias};
    codes_of<kLevels>(x, grid, codes);
    return grid;
  }
  Grid best{std::max(finite_of(half_of(step)), floor), bias};
  if (best.scale == floor) {
    codes_of<kLevels>(x, best, codes);
    return best;
  }
  float least = square_error<kLevels>(x, best, codes);
  alignas(64) float others[kGroup];
  for (const float factor : {1.0f - 0.2f / kLevels, 1.0f + 0.2f / kLevels}) {
    const Grid grid{finite_of(half_of(step * factor)), bias};
    // Past the limit the largest number would not bring the scale back.
    if (grid.scale < kHalfMinNormal || grid.scale < floor || bias + grid.scale * kLevels > kHalfMax) continue;
    const float error = square_error<kLevels>(x, grid, others);
    if (error >= least) continue;
    least = error;
    best = grid;
    std::copy_n(others, kGroup, codes);
  }
  return best;
}

template <uint32_t kLevels>
EMBEDSTORE_INLINE void encode_body(const void* values, uint32_t dim, std::byte* packed) noexcept {
  const auto* in = static_cast<const LooseFloat*>(values);
  auto* constants = reinterpret_cast<uint8_t*>(packed);
  uint8_t* out = constants + kConstantBytes * groups_of(dim);
  for (uint32_t begin = 0; begin < dim; begin += kGroup) {
    const uint32_t count = std::min(kGroup, dim - begin);
    alignas(64) float x[kGroup];
    alignas(64) float codes[kGroup];
    limited(in + begin, count, x);
    std::fill(x + count, x + kGroup, x[0]);
    const Grid grid = fit<kLevels>(x, codes);
    const uint16_t halves[2] = {half_of(grid.scale), half_of(grid.bias)};
    std::memcpy(constants, halves, sizeof halves);
    constants += kConstantBytes;
    uint8_t bytes[kGroup];
    for (uint32_t i = 0; i < kGroup; ++i) bytes[i] = static_cast<uint8_t>(std::bit_cast<uint32_t>(codes[i]) & 0xFF);
    if constexpr (kLevels == 255) {
      std::memcpy(out, bytes, count);
      out += count;
    } else {
      const uint32_t half = (count + 1) / 2;
      if (count % 2 != 0) bytes[count] = 0;
      for (uint32_t i = 0; i < half; ++i) out[i] = static_cast<uint8_t>(bytes[i] | (bytes[i + half] << 4));
      out += half;
    }
  }
}

// A whole group, with the constant counts that the vectoriser wants.
template <uint32_t kLevels>
EMBEDSTORE_INLINE void decode_group(const uint8_t* __restrict codes, Grid grid, LooseFloat* __restrict out) noexcept {
  if constexpr (kLevels == 255) {
    for (uint32_t i = 0; i < kGroup; ++i) out[i] = decoded(static_cast<float>(codes[i]), grid);
  } else {
    constexpr uint32_t kHalf = kGroup / 2;
    EMBEDSTORE_ROLLED
    for (uint32_t i = 0; i < kHalf; ++i) out[i] = decoded(static_cast<float>(codes[i] & 15), grid);
    EMBEDSTORE_ROLLED
    for (uint32_t i = 0; i < kHalf; ++i) out[kHalf + i] = decoded(static_cast<float>(codes[i] >> 4), grid);
  }
}

template <uint32_t kLevels>
EMBEDSTORE_INLINE void decode_rest(const uint8_t* codes, uint32_t count, Grid grid, LooseFloat* out) noexcept {
  const uint32_t half = (count + 1) / 2;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t code = kLevels == 255 ? codes[i] : i < half ? codes[i] & 15u : codes[i - half] >> 4u;
    out[i] = decoded(static_cast<float>(static_cast<int32_t>(code)), grid);
  }
}

// Decodes `count` numbers, whole groups and perhaps a short last one, and moves both pointers behind them.
template <uint32_t kLevels, bool kF16c>
EMBEDSTORE_INLINE void decode_groups(const uint8_t*& constants, const uint8_t*& codes, uint32_t count,
                                     LooseFloat* out) noexcept {
  for (uint32_t at = 0; at < count; at += kGroup) {
    const Grid grid = grid_at<kF16c>(constants);
    if (count - at >= kGroup) {
      decode_group<kLevels>(codes, grid, out + at);
    } else {
      decode_rest<kLevels>(codes, count - at, grid, out + at);
    }
    constants += kConstantBytes;
    codes += kLevels == 255 ? kGroup : kGroup / 2;
  }
}

template <uint32_t kLevels, bool kF16c>
EMBEDSTORE_INLINE void decode_body(const std::byte* packed, uint32_t dim, void* out) noexcept {
  const auto* constants = reinterpret_cast<const uint8_t*>(packed);
  const uint8_t* codes = constants + kConstantBytes * groups_of(dim);
  decode_groups<kLevels, kF16c>(constants, codes, dim, static_cast<LooseFloat*>(out));
}

// Packed rows to float16 by way of float32, a piece at a time.
template <uint32_t kLevels, bool kF16c>
EMBEDSTORE_INLINE void decode_half_body(const std::byte* packed, uint32_t dim, void* out,
                                        const HalfKernels& half) noexcept {
  const auto* constants = reinterpret_cast<const uint8_t*>(packed);
  const uint8_t* codes = constants + kConstantBytes * groups_of(dim);
  auto* bytes = static_cast<uint8_t*>(out);
  alignas(64) float values[kPiece];
  for (uint32_t begin = 0; begin < dim; begin += kPiece) {
    const uint32_t count = std::min(kPiece, dim - begin);
    decode_groups<kLevels, kF16c>(constants, codes, count, values);
    half.to(values, count, bytes + 2 * size_t{begin});
  }
}

EMBEDSTORE_INLINE void encode_half_body(const void* values, uint32_t dim, std::byte* packed,
                                        const HalfKernels& half) noexcept {
  const auto* in = static_cast<const LooseFloat*>(values);
  alignas(64) float piece[kPiece];
  for (uint32_t begin = 0; begin < dim; begin += kPiece) {
    const uint32_t count = std::min(kPiece, dim - begin);
    limited(in + begin, count, piece);
    half.to(piece, count, packed + 2 * size_t{begin});
  }
}

void copy_in(const void* values, uint32_t dim, std::byte* packed) noexcept { std::memcpy(packed, values, 4 * dim); }
void copy_out(const std::byte* packed, uint32_t dim, void* out) noexcept { std::memcpy(out, packed, 4 * dim); }
void copy_half_out(const std::byte* packed, uint32_t dim, void* out) noexcept { std::memcpy(out, packed, 2 * dim); }

#define EMBEDSTORE_KERNELS(NAME, TARGET, F16C, HALF)                                                            \
  TARGET void encode16_##NAME(const void* values, uint32_t dim, std::byte* packed) noexcept {                   \
    encode_half_body(values, dim, packed, HALF);                                                                \
  }                                                                                                             \
  TARGET void encode8_##NAME(const void* values, uint32_t dim, std::byte* packed) noexcept {                    \
    encode_body<255>(values, dim, packed);                                                                      \
  }                                                                                                             \
  TARGET void encode4_##NAME(const void* values, uint32_t dim, std::byte* packed) noexcept {                    \
    encode_body<15>(values, dim, packed);                                                                       \
  }                                                                                                             \
  TARGET void decode8_##NAME(const std::byte* packed, uint32_t dim, void* out) noexcept {                       \
    decode_body<255, F16C>(packed, dim, out);                                                                   \
  }                                                                                                             \
  TARGET void decode4_##NAME(const std::byte* packed, uint32_t dim, void* out) noexcept {                       \
    decode_body<15, F16C>(packed, dim, out);                                                                    \
  }                                                                                                             \
  TARGET void decode8_half_##NAME(const std::byte* packed, uint32_t dim, void* out) noexcept {                  \
    decode_half_body<255, F16C>(packed, dim, out, HALF);                                                        \
  }                                                                                                             \
  TARGET void decode4_half_##NAME(const std::byte* packed, uint32_t dim, void* out) noexcept {                  \
    decode_half_body<15, F16C>(packed, dim, out, HALF);                                                         \
  }                                                                                                             \
  void halve_##NAME(const std::byte* packed, uint32_t dim, void* out) noexcept {                                \
    HALF.to(reinterpret_cast<const float*>(packed), dim, out);                                                  \
  }                                                                                                             \
  void widen_##NAME(const std::byte* packed, uint32_t dim, void* out) noexcept { HALF.from(packed, dim, out); } \
  constexpr QuantKernels k_##NAME = {#NAME,                                                                     \
                                     {copy_in, encode16_##NAME, encode8_##NAME, encode4_##NAME},                \
                                     {copy_out, widen_##NAME, decode8_##NAME, decode4_##NAME},                  \
                                     {halve_##NAME, copy_half_out, decode8_half_##NAME, decode4_half_##NAME}};

EMBEDSTORE_KERNELS(portable, , false, kHalfPortable)
#if defined(__x86_64__)
EMBEDSTORE_KERNELS(avx2, __attribute__((target("avx2"))), true, half_kernels())
EMBEDSTORE_KERNELS(avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"))), true,
                   half_kernels())
constexpr std::array kAll = {k_portable, k_avx2, k_avx512};
#else
constexpr std::array kAll = {k_portable};
#endif

size_t count_here() noexcept {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) return 1;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return wide ? 3 : 2;
#else
  return 1;
#endif
}

}  // namespace

std::span<const QuantKernels> quant_kernels() noexcept {
  static const size_t count = count_here();
  return std::span(kAll).first(count);
}

EncodeRow encoder(RowType stored) noexcept { return quant_kernels().back().encode[static_cast<size_t>(stored)]; }

DecodeRow decoder(RowType stored, RowType wanted) noexcept {
  const QuantKernels& kernels = quant_kernels().back();
  return (wanted == RowType::kFloat16 ? kernels.to_half : kernels.to_float)[static_cast<size_t>(stored)];
}

}  // namespace embedstore
