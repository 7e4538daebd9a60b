#include "native/slab_pool.h"

#include <algorithm>

namespace embedstore {
namespace {

// Calls visit(huge page, begin, end) for each part of [begin, end), offsets within a region, that lies in one huge
// page.
template <class Visit>
void in_huge_pages(size_t begin, size_t end, Visit visit) noexcept {
  while (begin < end) {
    const size_t page = begin / kHugePageBytes;
    const size_t stop = std::min(end, (page + 1) * kHugePageBytes);
    visit(page, begin, stop);
    begin = stop;
  }
}

}  // namespace

SlabPool::~SlabPool() {
  for (const Place& place : places_) unmap_huge(place.memory, kRegionBytes);
}

SlabPool::Usage SlabPool::usage() const {
  const std::lock_guard lock(mutex_);
  return {places_.size() * slabs_per_region() - num_free_, places_.size()};
}

void SlabPool::add_region() {
  auto region = std::find_if(regions_.begin(), regions_.end(), [](const Region& r) { return r.memory == nullptr; });
  const auto number = static_cast<size_t>(region - regions_.begin());
  if (region == regions_.end()) {
    free_.reserve((regions_.size() + 1) * slabs_per_region());
    regions_.emplace_back();
    region = regions_.end() - 1;
  }
  places_.reserve(places_.size() + 1);
  region->memory = static_cast<std::byte*>(map_huge(kRegionBytes));
  region->pages.fill({});
  const auto after = std::upper_bound(places_.begin(), places_.end(), region->memory,
                                      [](const std::byte* memory, const Place& p) { return memory < p.memory; });
  places_.insert(after, {region->memory, number});
  for (size_t i = 0; i < slabs_per_region(); ++i) free_.add(static_cast<uint32_t>(number * slabs_per_region() + i));
  num_free_ += slabs_per_region();
}

size_t SlabPool::region_at(const void* memory) const noexcept {
  const auto after = std::upper_bound(places_.begin(), places_.end(), memory,
                                      [](const void* m, const Place& p) { return m < p.memory; });
  return (after - 1)->region;
}

void* SlabPool::allocate() {
  const std::lock_guard lock(mutex_);
  if (num_free_ == 0) add_region();
  const uint32_t number = free_.lowest();
  free_.remove(number);
  --num_free_;
  Region& region = regions_[number / slabs_per_region()];
  ++region.used;
  const size_t begin = number % slabs_per_region() * slab_bytes_;
  in_huge_pages(begin, begin + slab_bytes_, [&](size_t page, size_t from, size_t to) {
    HugePage& huge = region.pages[page];
    const auto resident = huge.used_bytes == 0 ? kHugePageBytes : huge.resident_bytes + (to - from);
    huge.resident_bytes = static_cast<uint32_t>(std::min(resident, kHugePageBytes));
    huge.used_bytes += static_cast<uint32_t>(to - from);
  });
  return region.memory + begin;
}

void SlabPool::release(void* slab) noexcept {
  void* unused = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const size_t number = region_at(slab);
    Region& region = regions_[number];
    give(number, static_cast<size_t>(static_cast<std::byte*>(slab) - region.memory) / slab_bytes_);
    if (region.used == 0) {
      unused = region.memory;
      forget(number);
    }
  }
  if (unused != nullptr) unmap_huge(unused, kRegionBytes);
}

void SlabPool::give(size_t number, size_t slab) noexcept {
  Region& region = regions_[number];
  free_.add(static_cast<uint32_t>(number * slabs_per_region() + slab));
  ++num_free_;
  if (--region.used == 0) return;
  const size_t begin = slab * slab_bytes_;
  in_huge_pages(begin, begin + slab_bytes_, [&](size_t page, size_t from, size_t to) {
    HugePage& huge = region.pages[page];
    const size_t first = page * kHugePageBytes;
    huge.used_bytes -= static_cast<uint32_t>(to - from);
    if (huge.used_bytes > huge.resident_bytes / 4 * 3) return;
    if (huge.used_bytes == 0) {
      discard_pages(region.memory + first, kHugePageBytes);
    } else {
      discard_free(number, first, first + kHugePageBytes);
    }
    huge.resident_bytes = huge.used_bytes;
  });
}

// The small pages in [begin, end) without slabs in use; those next to each other go in one call.
void SlabPool::discard_free(size_t number, size_t begin, size_t end) noexcept {
  const size_t slabs_end = std::min(slabs_per_region(), (end + slab_bytes_ - 1) / slab_bytes_);
  for (size_t slab = begin / slab_bytes_; slab < slabs_end; ++slab) {
    const size_t first = slab;
    while (slab < slabs_end && is_free(number, slab)) ++slab;
    if (slab == first) continue;
    const size_t from = std::max(begin, first * slab_bytes_);
    const size_t to = std::min(end, slab * slab_bytes_);
    discard_pages(regions_[number].memory + from, to - from);
  }
}

// A region without slabs in use.
void SlabPool::forget(size_t number) noexcept {
  for (size_t i = 0; i < slabs_per_region(); ++i) free_.remove(static_cast<uint32_t>(number * slabs_per_region() + i));
  num_free_ -= slabs_per_region();
  places_.erase(std::find_if(places_.begin(), places_.end(), [&](const Place& p) { return p.region == number; }));
  regions_[number].memory = nullptr;
}

}  // namespace embedstore
