#include "native/optimizer_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace embedstore {
namespace {

using Rule = Optimizer::Step::Rule;
constexpr auto kPlain = GradientMode::kPlain;
constexpr auto kScaled = GradientMode::kScaled;
constexpr auto kDecayed = GradientMode::kDecayed;

using Floats4 = float __attribute__((vector_size(16)));
using Doubles4 = double __attribute__((vector_size(32)));

EMBEDSTORE_INLINE Floats4 load(const float* values) noexcept {
  Floats4 loaded;
  std::memcpy(&loaded, values, sizeof loaded);
  return loaded;
}

// Number by number, which becomes one instruction; __builtin_convertvector becomes five here (GCC 12). No vector is
// narrowed to float32 anywhere: the same compiler takes a narrowing away that a widening follows. By reference, as
// vectors of 32 bytes are passed differently from one instruction set to another.
EMBEDSTORE_INLINE void widen(Floats4 x, Doubles4& wide) noexcept {
  wide = Doubles4{static_cast<double>(x[0]), static_cast<double>(x[1]), static_cast<double>(x[2]),
                  static_cast<double>(x[3])};
}

// A number of the gradient, or four, clipped and with the decay of its weight.
template <GradientMode kMode>
struct Ready {
  float scale;
  float weight_decay;

  template <class Value>
  EMBEDSTORE_INLINE Value operator()(Value g, Value w) const noexcept {
    if constexpr (kMode == kPlain) return g;
    const Value scaled = g * scale;
    if constexpr (kMode == kScaled) return scaled;
    return scaled + weight_decay * w;
  }
};

EMBEDSTORE_INLINE void add_squares(Doubles4& lanes, Floats4 values) noexcept {
  Doubles4 x;
  widen(values, x);
  lanes += x * x;
}

// The sum of squares of the gradient when it is ready, in 16 lanes.
template <GradientMode kMode>
EMBEDSTORE_INLINE double square_sum(const float* g, const float* w, uint32_t dim, Ready<kMode> ready) noexcept {
  constexpr uint32_t kLanes = 16;
  Doubles4 first = {}, second = {}, third = {}, fourth = {};
  uint32_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    add_squares(first, ready(load(g + d), load(w + d)));
    add_squares(second, ready(load(g + d + 4), load(w + d + 4)));
    add_squares(third, ready(load(g + d + 8), load(w + d + 8)));
    add_squares(fourth, ready(load(g + d + 12), load(w + d + 12)));
  }
  if (d < dim) {
    float rest[kLanes] = {};
    for (uint32_t j = 0; d + j < dim; ++j) rest[j] = ready(g[d + j], w[d + j]);
    add_squares(first, load(rest));
    add_squares(second, load(rest + 4));
    add_squares(third, load(rest + 8));
    add_squares(fourth, load(rest + 12));
  }
  const Doubles4 sum = (first + third) + (second + fourth);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

EMBEDSTORE_INLINE bool finite(const float* values, size_t count) noexcept {
  constexpr uint32_t kExponent = 0x7F800000;
  uint32_t bad = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= static_cast<uint32_t>((bits & kExponent) == kExponent);
  }
  return bad == 0;
}

// Each rule's loop copies what it reads of the rule first: the compiler cannot know that no row overlaps it.

struct Sgd {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float*, const float* __restrict g, uint32_t,
                                    Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    const float lr = rule.lr;
    for (uint32_t d = 0; d < dim; ++d) w[d] -= lr * ready(g[d], w[d]);
  }
};

struct Momentum {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float* __restrict v,
                                    const float* __restrict g, uint32_t, Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    const float lr = rule.lr, beta = rule.beta1;
    for (uint32_t d = 0; d < dim; ++d) {
      v[d] = beta * v[d] + ready(g[d], w[d]);
      w[d] -= lr * v[d];
    }
  }
};

struct Adagrad {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float* __restrict s,
                                    const float* __restrict g, uint32_t, Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    const float lr = rule.lr, eps = rule.eps;
    for (uint32_t d = 0; d < dim; ++d) {
      const float x = ready(g[d], w[d]);
      s[d] += x * x;
      w[d] -= lr * x / (std::sqrt(s[d]) + eps);
    }
  }
};

struct RowwiseAdagrad {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float* __restrict s,
                                    const float* __restrict g, uint32_t, Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    const double sum = square_sum(g, w, dim, ready);
    *s += static_cast<float>(sum / static_cast<double>(dim));
    const float step = rule.lr / (std::sqrt(*s) + rule.eps);
    for (uint32_t d = 0; d < dim; ++d) w[d] -= step * ready(g[d], w[d]);
  }
};

struct Adam {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float* __restrict m,
                                    const float* __restrict g, uint32_t updates, Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    float* __restrict v = m + dim;
    const float beta1 = rule.beta1, beta2 = rule.beta2, eps = rule.eps;
    const float rest1 = 1.0f - beta1, rest2 = 1.0f - beta2;
    const auto step = static_cast<float>(static_cast<double>(rule.lr) / rule.first(updates));
    const auto scale = static_cast<float>(1.0 / std::sqrt(rule.second(updates)));
    for (uint32_t d = 0; d < dim; ++d) {
      const float x = ready(g[d], w[d]);
      m[d] = beta1 * m[d] + rest1 * x;
      v[d] = beta2 * v[d] + rest2 * (x * x);
      w[d] -= step * m[d] / (std::sqrt(v[d]) * scale + eps);
    }
  }
};

struct RmsProp {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float* __restrict s,
                                    const float* __restrict g, uint32_t, Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    const float lr = rule.lr, eps = rule.eps, decay = rule.beta2;
    const float rest = 1.0f - decay;
    for (uint32_t d = 0; d < dim; ++d) {
      const float x = ready(g[d], w[d]);
      s[d] = decay * s[d] + rest * (x * x);
      w[d] -= lr * x / (std::sqrt(s[d]) + eps);
    }
  }
};

struct Ftrl {
  template <GradientMode kMode>
  static EMBEDSTORE_INLINE void run(const Rule& rule, float* __restrict w, float* __restrict z,
                                    const float* __restrict g, uint32_t, Ready<kMode> ready) noexcept {
    const uint32_t dim = rule.dim;
    float* __restrict n = z + dim;
    const float lr = rule.lr, beta = rule.beta1, l1 = rule.l1;
    const float ridge = lr * rule.l2;
    for (uint32_t d = 0; d < dim; ++d) {
      const float weight = w[d];
      const float x = ready(g[d], weight);
      n[d] += x * x;
      const float divisor = (beta + std::sqrt(n[d])) + ridge;
      const float rate = divisor == 0.0f ? 0.0f : lr / divisor;
      const float moved = weight - rate * x;
      const bool stays = (weight > 0.0f) ? (moved > 0.0f) : (weight < 0.0f) & (moved < 0.0f);
      const float excess = std::fabs(moved) / rate - l1;
      const float crossed = weight > 0.0f ? excess : -excess;
      const float pull = weight == 0.0f ? z[d] + x : crossed;
      const float beyond = std::fabs(pull) - l1;
      const float thrown = beyond <= 0.0f ? 0.0f : -std::copysign(rate * beyond, pull);
      const float landed = stays ? moved : thrown;
      w[d] = landed;
      z[d] = landed == 0.0f ? std::min(std::max(pull, -l1), l1) : 0.0f;
    }
  }
};

#define EMBEDSTORE_RULE(SET, RULE) {step_##SET<RULE, kPlain>, step_##SET<RULE, kScaled>, step_##SET<RULE, kDecayed>}
#define EMBEDSTORE_KERNELS(SET, TARGET)                                                                       \
  template <class R, GradientMode kMode>                                                                      \
  TARGET void step_##SET(const Rule& rule, float* row, float* state, const float* gradient, uint32_t updates, \
                         float scale) noexcept {                                                              \
    R::template run<kMode>(rule, row, state, gradient, updates, Ready<kMode>{scale, rule.weight_decay});      \
  }                                                                                                           \
  TARGET double square_sum_##SET(const float* values, uint32_t count) noexcept {                              \
    return square_sum(values, values, count, Ready<kPlain>{1.0f, 0.0f});                                      \
  }                                                                                                           \
  TARGET bool finite_##SET(const float* values, size_t count) noexcept { return finite(values, count); }      \
  constexpr OptimizerKernels k_##SET = {{{},                                                                  \
                                         EMBEDSTORE_RULE(SET, Sgd),                                           \
                                         EMBEDSTORE_RULE(SET, Momentum),                                      \
                                         EMBEDSTORE_RULE(SET, Adagrad),                                       \
                                         EMBEDSTORE_RULE(SET, RowwiseAdagrad),                                \
                                         EMBEDSTORE_RULE(SET, Adam),                                          \
                                         EMBEDSTORE_RULE(SET, RmsProp),                                       \
                                         EMBEDSTORE_RULE(SET, Ftrl)},                                         \
                                        square_sum_##SET,                                                     \
                                        finite_##SET};

EMBEDSTORE_KERNELS(portable, )
#if EMBEDSTORE_DISPATCH
EMBEDSTORE_KERNELS(avx2, EMBEDSTORE_AVX2)
EMBEDSTORE_KERNELS(avx512, EMBEDSTORE_AVX512)
#endif

}  // namespace

const OptimizerKernels& optimizer_kernels([[maybe_unused]] InstructionSet set) noexcept {
#if EMBEDSTORE_DISPATCH
  if (set == InstructionSet::kAvx512) return k_avx512;
  if (set == InstructionSet::kAvx2) return k_avx2;
#endif
  return k_portable;
}

}  // namespace embedstore
