// What a push does to a row. Each kernel runs in float32 without contraction, so that the result does not depend on
// the instructions chosen at run time. Immutable, callable from any thread on distinct rows.
//
//   SGD      w -= lr * g
//   Adagrad  s += g * g; w -= lr * g / (sqrt(s) + eps)                              (Duchi, Hazan, Singer 2011)
//   Adam     m = b1 * m + (1 - b1) * g; v = b2 * v + (1 - b2) * g * g;
//            w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)              (Kingma, Ba 2015, algorithm 1)
//            with t the row's own number of updates, this one included
#pragma once

#include <cstddef>
#include <cstdint>

namespace embedstore {

struct Optimizer {
  // The numbers are part of the delta format.
  enum class Kind : uint32_t { kSgd = 1, kAdagrad = 3, kAdam = 5 };

  Kind kind = Kind::kSgd;
  float initial_accumulator = 0;  // Adagrad
  float eps = 0;                  // Adagrad, Adam
  float beta1 = 0;                // Adam
  float beta2 = 0;                // Adam

  // Floats of state that a row carries: s, or m then v.
  uint32_t state_floats(uint32_t dim) const noexcept {
    return kind == Kind::kSgd ? 0 : kind == Kind::kAdagrad ? dim : 2 * dim;
  }
  void init_state(float* state, uint32_t dim) const noexcept;
  // `updates` counts this push.
  void apply(float* row, float* state, const float* gradient, uint32_t dim, float lr, uint32_t updates) const noexcept;
};

// Whether all numbers are finite.
bool all_finite(const float* values, size_t count) noexcept;

}  // namespace embedstore
