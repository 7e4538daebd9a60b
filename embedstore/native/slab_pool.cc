#include "native/slab_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace embedstore {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Maps `bytes` aligned to a huge page: maps more, and gives the ends back.
void* map_aligned(size_t bytes) {
  const size_t mapped = bytes + kHugePageBytes;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const auto start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = (start + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
  if (aligned > start) munmap(raw, aligned - start);
  const size_t behind = start + mapped - (aligned + bytes);
  if (behind > 0) munmap(reinterpret_cast<void*>(aligned + bytes), behind);
#ifdef MADV_HUGEPAGE
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
  return reinterpret_cast<void*>(aligned);
}

}  // namespace

SlabPool::~SlabPool() {
  for (void* region : regions_) munmap(region, kRegionBytes);
}

void SlabPool::add_region() {
  const size_t slabs = kRegionBytes / slab_bytes_;
  regions_.reserve(regions_.size() + 1);
  free_.reserve((regions_.size() + 1) * slabs);
  next_ = static_cast<std::byte*>(map_aligned(kRegionBytes));
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
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(slab) + page - 1) & ~(page - 1);
  const auto end = (reinterpret_cast<uintptr_t>(slab) + slab_bytes_) & ~(page - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  const std::lock_guard lock(mutex_);
  free_.push_back(slab);
}

}  // namespace embedstore
