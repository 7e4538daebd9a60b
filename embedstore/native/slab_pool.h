// Equal slabs of memory for the rows of all chunks of one table, cut from huge-page regions.
//
// Chunks share regions, so that every chunk wastes less than one small slab while all rows still lie in 2 MiB pages.
// Slabs lie next to each other and do not end with pages. The free slab that is lowest, oldest region first, is handed
// out first: later regions become free as a whole.
//
// What goes back to the system: a region without slabs in use; a huge page without; and, whenever a quarter of what may
// be resident of a huge page is free, every small page of it without. A table that gives little back keeps its huge
// pages whole, slabs that are given back next to each other go in one call, and at most 4/3 of what is in use stays
// resident, besides the newest huge page and the ends of small pages that are partly in use. A huge page that was
// discarded in part comes back in small pages.
//
// Invariants: slab i of region r has the number r * slabs_per_region() + i; a number is in `free_` exactly when its
// region is mapped and the slab is not handed out; a huge page counts its bytes in slabs handed out, and no fewer than
// are resident. There is room for every number, so giving a slab back cannot fail. Callable from any thread; one mutex,
// taken once per slab and never for a row.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "native/free_set.h"
#include "native/huge_pages.h"

namespace embedstore {

class SlabPool {
 public:
  static constexpr size_t kRegionBytes = size_t{16} << 20;

  // `slab_bytes`: from a page to a region.
  explicit SlabPool(size_t slab_bytes) noexcept : slab_bytes_(slab_bytes) {}
  ~SlabPool();
  SlabPool(const SlabPool&) = delete;
  SlabPool& operator=(const SlabPool&) = delete;

  size_t slab_bytes() const noexcept { return slab_bytes_; }
  size_t slabs_per_region() const noexcept { return kRegionBytes / slab_bytes_; }
  // Zeroed or not: the caller writes before it reads. Throws std::bad_alloc.
  void* allocate();
  void release(void* slab) noexcept;

  struct Usage {
    size_t slabs = 0;    // handed out
    size_t regions = 0;  // mapped
  };
  Usage usage() const;

 private:
  struct HugePage {
    uint32_t used_bytes = 0;
    uint32_t resident_bytes = 0;  // at most
  };
  struct Region {
    std::byte* memory = nullptr;  // null: unmapped, its number is free
    size_t used = 0;              // slabs handed out
    std::array<HugePage, kRegionBytes / kHugePageBytes> pages;
  };
  struct Place {
    std::byte* memory;
    size_t region;
  };

  void add_region();
  size_t region_at(const void* memory) const noexcept;
  void give(size_t region, size_t slab) noexcept;
  void discard_free(size_t region, size_t begin, size_t end) noexcept;
  bool is_free(size_t region, size_t slab) const noexcept {
    return free_.contains(static_cast<uint32_t>(region * slabs_per_region() + slab));
  }
  void forget(size_t region) noexcept;

  const size_t slab_bytes_;
  mutable std::mutex mutex_;
  std::vector<Region> regions_;
  std::vector<Place> places_;  // of the mapped regions, by address
  FreeSet free_;
  size_t num_free_ = 0;
};

}  // namespace embedstore
