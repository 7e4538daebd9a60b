// Memory straight from the system, aligned to huge pages (2 MiB) and advised to use them. Callable from any thread.
#pragma once

#include <cstddef>

namespace embedstore {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;
inline constexpr size_t kPageBytes = size_t{4} << 10;  // where the system's are larger, less can be discarded

// Zeroed; `bytes` is a multiple of kHugePageBytes. Pages cost nothing until they are touched. Throws std::bad_alloc.
void* map_huge(size_t bytes);
void unmap_huge(void* memory, size_t bytes) noexcept;
// Lets the system take the whole pages inside back; they read as zeros afterwards.
void discard_pages(void* memory, size_t bytes) noexcept;

}  // namespace embedstore
