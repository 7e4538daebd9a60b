// Asking for a cache line ahead of its use: into the second-level cache, where more requests can be under way at once
// than into the first. Callable on any address, from any thread.
#pragma once

namespace embedstore {

// GCC takes a function that does nothing but prefetch for one without effect, and drops the calls that it has not
// inlined by then; the empty statement keeps them.
template <int kWrite = 0>
inline void prefetch_line(const void* address) noexcept {
  __builtin_prefetch(address, kWrite, 2);
  asm volatile("");
}

}  // namespace embedstore
