// The first embedding of an id: a pure function of the initializer and the id, the same bits in every process, on every
// machine and in every release. Immutable, callable from any thread.
//
// Random numbers: with x = mix64(id ^ mix64(seed)) the numbers 2k and 2k + 1 of the row come from the low and the high
// half, h, of mix64(x + (k + 1) * 0x9E3779B97F4A7C15).
//
// Uniform: the top 24 bits u of h give (u - 2^23) * 2^-23 * scale in float32, in [-scale, scale).
//
// Normal: float32(standard(q)) * scale with q = (h - 2147483647.5) * 2^-32, which lies in (-0.5, 0.5), never at 0. The
// truncated normal has standard(q * 0.95449973610364158), limited to [-2, 2]: q then covers what lies within two
// standard deviations, as if every number outside had been drawn again. standard() is the inverse of the normal
// distribution at 0.5 + q by algorithm AS 241, PPND7 (Wichura 1988; relative error 1e-7), in double, every operation
// rounded by itself, polynomials by Horner's rule:
//   |q| <= 0.425   r = 0.180625 - q * q; q * (A(r) / B(r))
//   otherwise      r = sqrt(-ln(0.5 - |q|)) - 1.6; C(r) / D(r) with q's sign (0.5 - |q| is at least 2^-33, so the
//                  paper's third case, below e^-25, never comes)
// ln is our own, as libraries differ in its last bit: p = m * 2^e with m in [sqrt(0.5), sqrt(2)), s = (m - 1) / (m +
// 1), t = s * s; e * 0.6931471805599453 + 2 * s * (1 + t * (1/3 + t * (1/5 + ... + t * (1/15)))).
#pragma once

#include <cstdint>

#include "native/instruction_set.h"

namespace embedstore {

struct Initializer {
  enum class Kind : uint8_t { kZeros, kConstant, kUniform, kNormal, kTruncatedNormal };

  Kind kind = Kind::kZeros;
  float scale = 0;  // the constant, the bound of the uniform, or the standard deviation
  uint64_t seed = 0;

  void fill(uint64_t id, float* row, uint32_t dim, InstructionSet set = best_instruction_set()) const noexcept;
};

}  // namespace embedstore
