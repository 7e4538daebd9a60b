// What a push does to a row. Arithmetic is float32 without contraction, in the order written here, so that the result
// does not depend on the instructions chosen at run time; what is said to be double is rounded to float32 where it says
// so. Immutable, callable from any thread on distinct rows.
//
// First the row's gradient g, the sum over the push, is made ready:
//   clip      when the norm of g is above clip_norm: g = g * float(clip_norm / norm), the norm in double
//   decay     g = g + weight_decay * w, as torch.optim does (not FTRL)
// then the rule runs:
//   SGD              w -= lr * g
//   momentum         v = beta1 * v + g; w -= lr * v
//   Adagrad          s += g * g; w -= lr * g / (sqrt(s) + eps)                     (Duchi, Hazan, Singer 2011)
//   row-wise Adagrad s += float(sum of g * g / dim); w -= (lr / (sqrt(s) + eps)) * g, with one s a row
//   Adam             m = b1 * m + (1 - b1) * g; v = b2 * v + (1 - b2) * (g * g);
//                    w -= step * m / (sqrt(v) * scale + eps)                       (Kingma, Ba 2015, algorithm 1)
//                    with step = float(lr / (1 - b1^t)), scale = float(1 / sqrt(1 - b2^t)), both in double, and t the
//                    row's own number of updates, this one included
//   RMSProp          s = beta2 * s + (1 - beta2) * (g * g); w -= lr * g / (sqrt(s) + eps)   (Hinton 2012, lecture 6e)
//   FTRL-Proximal    n += g * g; r = lr / (beta1 + sqrt(n) + lr * l2); then, a coordinate at a time,
//                    the weight w' that minimises the proximal problem             (McMahan et al. 2013, algorithm 1)
//
// FTRL keeps (z, n). In the paper z is the state and w follows from it: w = 0 when |z| <= l1, otherwise
// w = -(z - sgn(z) l1) / q with q = 1 / r. That gives z back from a weight that is not zero: z = -w q - sgn(w) l1. So
// here the weight is what holds, and z is kept only beside a weight of zero, within [-l1, l1]; beside any other it is
// 0. With a fixed lr this is the paper's algorithm, written so that nothing is lost to the sum in z:
//   w != 0   u = w - r * g. Same sign as w: w' = u. Otherwise z = sgn(w) * (|u| / r - l1)
//   w == 0   z += g
//   then     |z| <= l1: w' = 0, otherwise w' = -sgn(z) * r * (|z| - l1); r is 0 where its divisor is 0
// and it has an answer where the paper has none: a row starts from any initial value and keeps it until a gradient
// comes (as if z had been chosen for it: l2 then pulls to that value, and l1 only holds a weight that comes to zero),
// an assigned weight is learnt on from, and a push with a learning rate of its own scales its own step and moves no
// weight besides.
//
// Sums over a row run in double in 16 lanes: lane j adds the numbers j, j + 16, j + 32, ... in order; then lane j adds
// lane j + 8, then j + 4, j + 2, j + 1. b^t is the product, in double, of (b^(32^k))^digit for the digits of t to base
// 32 from the lowest; each power is made by repeated multiplication with its base, and 1 - b^t is 1 from t = 32^k on
// where b^(32^k) <= 2^-26.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/instruction_set.h"

namespace embedstore {

struct Optimizer {
  // The numbers are part of the delta format.
  enum class Kind : uint32_t {
    kSgd = 1,
    kMomentum = 2,
    kAdagrad = 3,
    kRowwiseAdagrad = 4,
    kAdam = 5,
    kRmsProp = 6,
    kFtrl = 7
  };
  static constexpr uint32_t kKinds = 8;  // one past the largest

  Kind kind = Kind::kSgd;
  float initial_accumulator = 0;  // Adagrad, row-wise Adagrad
  float eps = 0;                  // Adagrad, row-wise Adagrad, Adam, RMSProp
  float beta1 = 0;                // momentum, Adam; the paper's beta in FTRL
  float beta2 = 0;                // Adam, RMSProp
  float l1 = 0;                   // FTRL
  float l2 = 0;                   // FTRL
  float weight_decay = 0;         // all but FTRL
  float clip_norm = 0;            // 0: no bound

  // Floats of state that a row carries.
  uint32_t state_floats(uint32_t dim) const noexcept;
  void init_state(float* state, uint32_t dim) const noexcept;

  class Step;
  // The step of all rows of one push: makes ready once what does not depend on the row (about a microsecond for Adam,
  // nothing for the others).
  Step prepare(uint32_t dim, float lr, InstructionSet set = best_instruction_set()) const noexcept;
  // One step; for many of one push, prepare() once. `updates` counts this push.
  void apply(float* row, float* state, const float* gradient, uint32_t dim, float lr, uint32_t updates) const noexcept;
};

// 1 - b^t for any t, from the powers of b to base 32.
class BiasCorrection {
 public:
  void prepare(float beta) noexcept;
  double operator()(uint32_t updates) const noexcept;

 private:
  static constexpr unsigned kBits = 5;
  static constexpr unsigned kDigitsMax = 6;  // (1 - 2^-24)^(32^6) is below 2^-26

  unsigned digits_ = 0;
  double powers_[kDigitsMax][1 << kBits];
};

class Optimizer::Step {
 public:
  // What a kernel reads.
  struct Rule {
    uint32_t dim;
    float lr, eps, beta1, beta2, l1, l2, weight_decay;
    BiasCorrection first, second;  // Adam
  };
  using Kernel = void (*)(const Rule&, float* row, float* state, const float* gradient, uint32_t updates,
                          float scale) noexcept;

  void operator()(float* row, float* state, const float* gradient, uint32_t updates) const noexcept {
    if (clip_norm_ > 0) {
      clipped(row, state, gradient, updates);
    } else {
      kernel_(rule_, row, state, gradient, updates, 1.0f);
    }
  }

 private:
  friend struct Optimizer;
  void clipped(float* row, float* state, const float* gradient, uint32_t updates) const noexcept;

  Kernel kernel_;
  Kernel scaling_kernel_;
  double (*square_sum_)(const float*, uint32_t) noexcept;
  float clip_norm_;
  Rule rule_;
};

// Whether all numbers are finite.
bool all_finite(const float* values, size_t count) noexcept;

}  // namespace embedstore
