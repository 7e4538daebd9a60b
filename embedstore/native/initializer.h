// The first embedding of an id: a pure function of the initializer and the id, the same in every process and release.
//
// Uniform: with x = mix64(id ^ mix64(seed)) the numbers 2k and 2k+1 of the row come from the low and the high half of
// mix64(x + (k + 1) * 0x9E3779B97F4A7C15): the top 24 bits u of a half give (u - 2^23) * 2^-23 * scale in float32, in
// [-scale, scale). Immutable, callable from any thread.
#pragma once

#include <cstdint>

namespace embedstore {

struct Initializer {
  enum class Kind : uint8_t { kZeros, kConstant, kUniform };

  Kind kind = Kind::kZeros;
  float scale = 0;  // the constant, or the bound of the uniform
  uint64_t seed = 0;

  void fill(uint64_t id, float* row, uint32_t dim) const noexcept;
};

}  // namespace embedstore
