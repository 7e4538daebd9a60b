#include "native/slab_pool.h"

#include <algorithm>

#include "native/huge_pages.h"

namespace embedstore {
namespace {

constexpr size_t kRegionBytesMin = size_t{16} << 20;
constexpr size_t kPagesPerHuge = kHugePageBytes / kPageBytes;

// Between the least and twice that, what leaves the least share of a region unused.
size_t region_bytes_for(size_t slab_bytes) noexcept {
  size_t best = (std::max(slab_bytes, kRegionBytesMin) + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const size_t end = 2 * best;
  for (size_t bytes = best; bytes < end; bytes += kHugePageBytes)
    if (bytes % slab_bytes * best < best % slab_bytes * bytes) best = bytes;
  return best;
}

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

SlabPool::SlabPool(size_t slab_bytes) noexcept : slab_bytes_(slab_bytes), region_bytes_(region_bytes_for(slab_bytes)) {}

SlabPool::~SlabPool() {
  for (const Place& place : places_) unmap_huge(place.memory, region_bytes_);
}

SlabPool::Usage SlabPool::usage() const {
  const std::lock_guard lock(mutex_);
  Usage usage;
  usage.regions = places_.size();
  usage.slabs = places_.size() * slabs_per_region() - num_free_;
  for (const Region& region : regions_)
    for (const HugePage& page : region.pages)
      usage.resident_bytes += page.state == PageState::kWhole ? kHugePageBytes : page.used * kPageBytes;
  return usage;
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
  region->pages.assign(region_bytes_ / kHugePageBytes, HugePage{});
  region->memory = static_cast<std::byte*>(map_huge(region_bytes_));
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
  const size_t begin = number % slabs_per_region() * slab_bytes_;
  take(region, begin);
  return region.memory + begin;
}

void SlabPool::take(Region& region, size_t begin) noexcept {
  ++region.used;
  in_huge_pages(begin, begin + slab_bytes_, [&](size_t page, size_t from, size_t to) {
    HugePage& huge = region.pages[page];
    huge.used = static_cast<uint16_t>(huge.used + (to - from) / kPageBytes);
    if (huge.state == PageState::kEmpty) huge.state = PageState::kWhole;
  });
}

void SlabPool::release(void* slab) noexcept {
  void* unused = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const size_t number = region_at(slab);
    Region& region = regions_[number];
    give(number, region, static_cast<size_t>(static_cast<std::byte*>(slab) - region.memory));
    if (region.used == 0) {
      unused = region.memory;
      forget(number);
    }
  }
  if (unused != nullptr) unmap_huge(unused, region_bytes_);
}

void SlabPool::give(size_t number, Region& region, size_t begin) noexcept {
  free_.add(static_cast<uint32_t>(number * slabs_per_region() + begin / slab_bytes_));
  ++num_free_;
  if (--region.used == 0) return;
  in_huge_pages(begin, begin + slab_bytes_, [&](size_t page, size_t from, size_t to) {
    HugePage& huge = region.pages[page];
    huge.used = static_cast<uint16_t>(huge.used - (to - from) / kPageBytes);
    if (huge.used == 0) {
      discard_pages(region.memory + page * kHugePageBytes, kHugePageBytes);
      huge.state = PageState::kEmpty;
    } else if (huge.state == PageState::kSplit) {
      discard_pages(region.memory + from, to - from);
    } else if (huge.used <= kPagesPerHuge * 3 / 4) {
      discard_free(number, region, page);
      huge.state = PageState::kSplit;
    }
  });
}

// Free slabs next to each other go in one call.
void SlabPool::discard_free(size_t number, const Region& region, size_t huge_page) noexcept {
  const size_t first = huge_page * kHugePageBytes;
  const size_t last = first + kHugePageBytes;
  const size_t slabs_end = std::min(slabs_per_region(), (last + slab_bytes_ - 1) / slab_bytes_);
  for (size_t slab = first / slab_bytes_; slab < slabs_end;) {
    const size_t begin = slab;
    while (slab < slabs_end && free_.contains(static_cast<uint32_t>(number * slabs_per_region() + slab))) ++slab;
    const size_t from = std::max(first, begin * slab_bytes_);
    const size_t to = std::min(last, slab * slab_bytes_);
    if (slab > begin) discard_pages(region.memory + from, to - from);
    if (slab == begin) ++slab;
  }
}

// A region without slabs in use.
void SlabPool::forget(size_t number) noexcept {
  Region& region = regions_[number];
  for (size_t i = 0; i < slabs_per_region(); ++i) free_.remove(static_cast<uint32_t>(number * slabs_per_region() + i));
  num_free_ -= slabs_per_region();
  places_.erase(std::find_if(places_.begin(), places_.end(), [&](const Place& p) { return p.region == number; }));
  region.memory = nullptr;
  region.pages.clear();
}

}  // namespace embedstore
