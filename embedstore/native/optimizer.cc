#include "native/optimizer.h"

#include <algorithm>
#include <cmath>

#include "native/optimizer_kernels.h"

namespace embedstore {

void BiasCorrection::prepare(float beta) noexcept {
  double base = static_cast<double>(beta);
  for (digits_ = 0; base > 0x1p-26 && digits_ < kDigitsMax; ++digits_) {
    double* powers = powers_[digits_];
    powers[0] = 1.0;
    for (unsigned i = 1; i < (1u << kBits); ++i) powers[i] = powers[i - 1] * base;
    base = powers[(1u << kBits) - 1] * base;
  }
}

double BiasCorrection::operator()(uint32_t updates) const noexcept {
  if ((updates >> (kBits * digits_)) != 0) return 1.0;
  double power = 1.0;
  for (unsigned k = 0; updates != 0; ++k, updates >>= kBits) power *= powers_[k][updates & ((1u << kBits) - 1)];
  return 1.0 - power;
}

uint32_t Optimizer::state_floats(uint32_t dim) const noexcept {
  switch (kind) {
    case Kind::kSgd:
      return 0;
    case Kind::kRowwiseAdagrad:
      return 1;
    case Kind::kMomentum:
    case Kind::kAdagrad:
    case Kind::kRmsProp:
      return dim;
    case Kind::kAdam:
    case Kind::kFtrl:
      return 2 * dim;
  }
  return 0;
}

void Optimizer::init_state(float* state, uint32_t dim) const noexcept {
  const bool accumulates = kind == Kind::kAdagrad || kind == Kind::kRowwiseAdagrad;
  std::fill_n(state, state_floats(dim), accumulates ? initial_accumulator : 0.0f);
}

Optimizer::Step Optimizer::prepare(uint32_t dim, float lr, InstructionSet set) const noexcept {
  const OptimizerKernels& kernels = optimizer_kernels(set);
  const auto& of_kind = kernels.steps[static_cast<uint32_t>(kind)];
  const bool decays = weight_decay != 0;
  Step step;
  step.kernel_ = of_kind[static_cast<int>(decays ? GradientMode::kDecayed : GradientMode::kPlain)];
  step.scaling_kernel_ = of_kind[static_cast<int>(decays ? GradientMode::kDecayed : GradientMode::kScaled)];
  step.square_sum_ = kernels.square_sum;
  step.clip_norm_ = clip_norm;
  step.rule_.dim = dim;
  step.rule_.lr = lr;
  step.rule_.eps = eps;
  step.rule_.beta1 = beta1;
  step.rule_.beta2 = beta2;
  step.rule_.l1 = l1;
  step.rule_.l2 = l2;
  step.rule_.weight_decay = weight_decay;
  if (kind == Kind::kAdam) {
    step.rule_.first.prepare(beta1);
    step.rule_.second.prepare(beta2);
  }
  return step;
}

void Optimizer::Step::clipped(float* row, float* state, const float* gradient, uint32_t updates) const noexcept {
  const double norm = std::sqrt(square_sum_(gradient, rule_.dim));
  const double bound = static_cast<double>(clip_norm_);
  if (norm > bound) {
    scaling_kernel_(rule_, row, state, gradient, updates, static_cast<float>(bound / norm));
  } else {
    kernel_(rule_, row, state, gradient, updates, 1.0f);
  }
}

void Optimizer::apply(float* row, float* state, const float* gradient, uint32_t dim, float lr,
                      uint32_t updates) const noexcept {
  prepare(dim, lr)(row, state, gradient, updates);
}

bool all_finite(const float* values, size_t count) noexcept {
  static const auto finite = optimizer_kernels(best_instruction_set()).finite;
  return finite(values, count);
}

}  // namespace embedstore
