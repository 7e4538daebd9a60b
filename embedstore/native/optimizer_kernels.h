// The loops of optimizer.h, one table of them for each instruction set.
#pragma once

#include "native/optimizer.h"

namespace embedstore {

// How the gradient is made ready within the loop.
enum class GradientMode { kPlain, kScaled, kDecayed };  // kDecayed scales too

struct OptimizerKernels {
  Optimizer::Step::Kernel steps[Optimizer::kKinds][3];  // by kind and GradientMode
  double (*square_sum)(const float* values, uint32_t count) noexcept;
  bool (*finite)(const float* values, size_t count) noexcept;
};

// `set` must be supported.
const OptimizerKernels& optimizer_kernels(InstructionSet set) noexcept;

}  // namespace embedstore
