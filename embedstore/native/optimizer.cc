#include "native/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Each kernel is written once and compiled for several instruction sets; one of them is chosen when the program starts.
#if defined(__x86_64__)
#define EMBEDSTORE_DISPATCH 1
#else
#define EMBEDSTORE_DISPATCH 0
#endif
#define EMBEDSTORE_INLINE inline __attribute__((always_inline))

namespace embedstore {
namespace {

EMBEDSTORE_INLINE void sgd_body(float* w, const float* g, uint32_t dim, float lr) noexcept {
  for (uint32_t d = 0; d < dim; ++d) w[d] -= lr * g[d];
}

EMBEDSTORE_INLINE void adagrad_body(float* __restrict w, float* __restrict s, const float* __restrict g, uint32_t dim,
                                    float lr, float eps) noexcept {
  for (uint32_t d = 0; d < dim; ++d) {
    s[d] += g[d] * g[d];
    w[d] -= lr * g[d] / (std::sqrt(s[d]) + eps);
  }
}

struct AdamStep {
  float lr, eps, beta1, beta2, correction1, correction2;
};

EMBEDSTORE_INLINE void adam_body(float* __restrict w, float* __restrict m, float* __restrict v,
                                 const float* __restrict g, uint32_t dim, const AdamStep& step) noexcept {
  const float rest1 = 1.0f - step.beta1;
  const float rest2 = 1.0f - step.beta2;
  for (uint32_t d = 0; d < dim; ++d) {
    m[d] = step.beta1 * m[d] + rest1 * g[d];
    v[d] = step.beta2 * v[d] + rest2 * (g[d] * g[d]);
    w[d] -= step.lr * (m[d] / step.correction1) / (std::sqrt(v[d] / step.correction2) + step.eps);
  }
}

EMBEDSTORE_INLINE bool finite_body(const float* values, size_t count) noexcept {
  constexpr uint32_t kExponent = 0x7F800000;
  uint32_t bad = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= static_cast<uint32_t>((bits & kExponent) == kExponent);
  }
  return bad == 0;
}

struct Kernels {
  void (*sgd)(float*, const float*, uint32_t, float) noexcept;
  void (*adagrad)(float*, float*, const float*, uint32_t, float, float) noexcept;
  void (*adam)(float*, float*, float*, const float*, uint32_t, const AdamStep&) noexcept;
  bool (*finite)(const float*, size_t) noexcept;
};

#define EMBEDSTORE_KERNELS(NAME, TARGET)                                                                            \
  TARGET void sgd_##NAME(float* w, const float* g, uint32_t dim, float lr) noexcept { sgd_body(w, g, dim, lr); }    \
  TARGET void adagrad_##NAME(float* w, float* s, const float* g, uint32_t dim, float lr, float eps) noexcept {      \
    adagrad_body(w, s, g, dim, lr, eps);                                                                            \
  }                                                                                                                 \
  TARGET void adam_##NAME(float* w, float* m, float* v, const float* g, uint32_t dim, const AdamStep& s) noexcept { \
    adam_body(w, m, v, g, dim, s);                                                                                  \
  }                                                                                                                 \
  TARGET bool finite_##NAME(const float* values, size_t count) noexcept { return finite_body(values, count); }      \
  constexpr Kernels k_##NAME = {sgd_##NAME, adagrad_##NAME, adam_##NAME, finite_##NAME};

EMBEDSTORE_KERNELS(portable, )
#if EMBEDSTORE_DISPATCH
EMBEDSTORE_KERNELS(avx2, __attribute__((target("avx2"))))
EMBEDSTORE_KERNELS(avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512"))))
#endif

const Kernels& choose() noexcept {
#if EMBEDSTORE_DISPATCH
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return k_avx512;
  if (__builtin_cpu_supports("avx2")) return k_avx2;
#endif
  return k_portable;
}

const Kernels& kernels() noexcept {
  static const Kernels& chosen = choose();
  return chosen;
}

float bias_correction(float beta, uint32_t updates) noexcept {
  return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(updates)));
}

}  // namespace

void Optimizer::init_state(float* state, uint32_t dim) const noexcept {
  std::fill_n(state, state_floats(dim), kind == Kind::kAdagrad ? initial_accumulator : 0.0f);
}

void Optimizer::apply(float* row, float* state, const float* gradient, uint32_t dim, float lr,
                      uint32_t updates) const noexcept {
  switch (kind) {
    case Kind::kSgd:
      kernels().sgd(row, gradient, dim, lr);
      return;
    case Kind::kAdagrad:
      kernels().adagrad(row, state, gradient, dim, lr, eps);
      return;
    case Kind::kAdam:
      kernels().adam(row, state, state + dim, gradient, dim,
                     {lr, eps, beta1, beta2, bias_correction(beta1, updates), bias_correction(beta2, updates)});
      return;
  }
}

bool all_finite(const float* values, size_t count) noexcept { return kernels().finite(values, count); }

}  // namespace embedstore
