#include "native/slab_pool.h"

#include "native/huge_pages.h"

namespace embedstore {
SlabPool::~SlabPool() {
  for (void* region : regions_) unmap_huge(region, kRegionBytes);
}

void SlabPool::add_region() {
  const size_t slabs = kRegionBytes / slab_bytes_;
  regions_.reserve(regions_.size() + 1);
  free_.reserve((regions_.size() + 1) * slabs);
  next_ = static_cast<std::byte*>(map_huge(kRegionBytes));
  regions_.push_back(next_);
  left_ = slabs;
}

void* SlabPool::allocate() {
  const std::lock_guard lock(mutex_);
  if (!free_.empty()) {
    void* slab = free_.back();
    free_.pop_back();
    return slab;
  }
  if (left_ == 0) add_region();
  void* slab = next_;
  next_ += slab_bytes_;
  --left_;
  return slab;
}

void SlabPool::release(void* slab) noexcept {
  discard_pages(slab, slab_bytes_);
  const std::lock_guard lock(mutex_);
  free_.push_back(slab);
}

}  // namespace embedstore
