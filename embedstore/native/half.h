// float32 -> IEEE binary16, round to nearest even, overflow to infinity: the same result with and without the
// processor's instruction. `out` need not be aligned. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace embedstore {

void to_half(const float* values, size_t count, void* out) noexcept;
uint16_t half_of(float value) noexcept;

}  // namespace embedstore
