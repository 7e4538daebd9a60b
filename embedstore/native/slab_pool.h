// Equal slabs of memory for the rows of all chunks of one table, cut from huge-page regions.
//
// Chunks share regions, so that every chunk wastes less than one small slab while all rows still lie in 2 MiB pages.
// The free slab that is lowest, oldest region first, is handed out first: later regions become free as a whole.
//
// What goes back to the system: a region without slabs in use, a huge page without, and the free slabs of a huge page
// of which a quarter is free. So at most 4/3 of what is in use stays resident (and the newest huge page), while a table
// that gives little back keeps its huge pages whole. A page that is discarded in part is no huge page any more until it
// was free as a whole.
//
// Invariants: slab i of region r has the number r * slabs_per_region() + i; a number is in `free_` exactly when its
// region is mapped and the slab is not handed out; a huge page counts the 4 KiB pages of slabs handed out in it. There
// is room for every number, so giving a slab back cannot fail. Callable from any thread; one mutex, taken once per slab
// and never for a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "native/free_set.h"

namespace embedstore {

class SlabPool {
 public:
  // `slab_bytes`: whole pages of 4 KiB.
  explicit SlabPool(size_t slab_bytes) noexcept;
  ~SlabPool();
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  size_t slab_bytes() const noexcept { return slab_bytes_; }
  size_t region_bytes() const noexcept { return region_bytes_; }
  size_t slabs_per_region() const noexcept { return region_bytes_ / slab_bytes_; }
  // Zeroed or not: the caller writes before it reads. Throws std::bad_alloc.
  void* allocate();
  void release(void* slab) noexcept;

  struct Usage {
    size_t slabs = 0;           // handed out
    size_t regions = 0;         // mapped
    size_t resident_bytes = 0;  // at most, as far as the pool knows
  };
  Usage usage() const;

 private:
  enum class PageState : uint8_t { kEmpty, kWhole, kSplit };
  struct HugePage {
    uint16_t used = 0;  // 4 KiB pages of it in slabs handed out
    PageState state = PageState::kEmpty;
  };
  struct Region {
    std::byte* memory = nullptr;  // null: unmapped, its number is free
    size_t used = 0;              // slabs handed out
    std::vector<HugePage> pages;
  };
  struct Place {
    std::byte* memory;
    size_t region;
  };

  void add_region();
  size_t region_at(const void* memory) const noexcept;
  void take(Region& region, size_t begin) noexcept;
  void give(size_t number, Region& region, size_t begin) noexcept;
  void discard_free(size_t number, const Region& region, size_t huge_page) noexcept;
  void forget(size_t number) noexcept;

  const size_t slab_bytes_;
  const size_t region_bytes_;
  mutable std::mutex mutex_;
  std::vector<Region> regions_;
  std::vector<Place> places_;  // of the mapped regions, by address
  FreeSet free_;
  size_t num_free_ = 0;
};

}  // namespace embedstore
