// Equal slabs of memory for the rows of all chunks of one table, cut from huge-page regions.
//
// Chunks share regions, so that every chunk wastes less than one small slab while all rows still lie in 2 MiB pages.
// Invariants: a slab belongs to exactly one region and is either handed out, in the free list, or beyond the region's
// used part; the free list has room for every slab, so giving one back cannot fail. A freed slab's pages go back to
// the system at once. Callable from any thread; one mutex, taken once per slab and never for a row.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace embedstore {

class SlabPool {
 public:
  static constexpr size_t kRegionBytes = size_t{16} << 20;

  explicit SlabPool(size_t slab_bytes) noexcept : slab_bytes_(slab_bytes) {}
  ~SlabPool();
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  size_t slab_bytes() const noexcept { return slab_bytes_; }
  // Zeroed or not: the caller writes before it reads. Throws std::bad_alloc.
  void* allocate();
  void release(void* slab) noexcept;

 private:
  void add_region();

  const size_t slab_bytes_;
  std::mutex mutex_;
  std::vector<void*> regions_;  // all of kRegionBytes
  std::vector<void*> free_;
  std::byte* next_ = nullptr;  // unused part of the newest region
  size_t left_ = 0;
};

}  // namespace embedstore
