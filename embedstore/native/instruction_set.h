// The instruction sets that hot loops are compiled for; the best that the machine has is chosen at run time. A loop is
// written once and does the same arithmetic in the same order under all of them, so its results are the same bits.
// Every function here may be called from any thread.
#pragma once

#include <cstddef>

#if defined(__x86_64__)
#define EMBEDSTORE_DISPATCH 1
#define EMBEDSTORE_AVX2 __attribute__((target("avx2")))
#define EMBEDSTORE_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")))
#else
#define EMBEDSTORE_DISPATCH 0
#endif
#define EMBEDSTORE_INLINED __attribute__((always_inline))
#define EMBEDSTORE_INLINE inline EMBEDSTORE_INLINED

namespace embedstore {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };
inline constexpr size_t kInstructionSets = 3;

inline bool is_supported(InstructionSet set) noexcept {
#if EMBEDSTORE_DISPATCH
  if (set == InstructionSet::kAvx2) return __builtin_cpu_supports("avx2");
  if (set == InstructionSet::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
  return set == InstructionSet::kPortable;
}

// The best one of this machine.
inline InstructionSet best_instruction_set() noexcept {
  static const InstructionSet best = is_supported(InstructionSet::kAvx512) ? InstructionSet::kAvx512
                                     : is_supported(InstructionSet::kAvx2) ? InstructionSet::kAvx2
                                                                           : InstructionSet::kPortable;
  return best;
}

}  // namespace embedstore
