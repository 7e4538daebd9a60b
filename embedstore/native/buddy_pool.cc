#include "native/buddy_pool.h"

#include <algorithm>

namespace embedstore {
namespace {

unsigned order_of(size_t bytes) noexcept {
  unsigned order = 0;
  while ((BuddyPool::kBlockBytesMin << order) < bytes) ++order;
  return order;
}

}  // namespace

BuddyPool::~BuddyPool() {
  for (const auto& region : regions_) unmap_huge(region->memory, kHugePageBytes);
}

size_t BuddyPool::num_regions() const {
  const std::lock_guard lock(mutex_);
  return regions_.size();
}

// `order` is that of `node`, whose own value is already right.
void BuddyPool::update_parents(Region& region, size_t node, unsigned order) noexcept {
  while (node > 1) {
    node /= 2;
    ++order;
    const uint8_t left = region.tree[2 * node];
    const uint8_t right = region.tree[2 * node + 1];
    region.tree[node] = left == order && right == order ? static_cast<uint8_t>(order + 1) : std::max(left, right);
  }
}

void* BuddyPool::allocate(size_t bytes) {
  const unsigned order = order_of(bytes);
  const std::lock_guard lock(mutex_);
  auto found = std::find_if(regions_.begin(), regions_.end(), [&](const auto& r) { return r->tree[1] > order; });
  if (found == regions_.end()) {
    regions_.reserve(regions_.size() + 1);
    auto region = std::make_unique<Region>();
    for (unsigned depth = 0; depth < kOrders; ++depth)
      std::fill_n(region->tree.begin() + (size_t{1} << depth), size_t{1} << depth,
                  static_cast<uint8_t>(kOrders - depth));
    region->memory = static_cast<std::byte*>(map_huge(kHugePageBytes));
    regions_.push_back(std::move(region));
    found = regions_.end() - 1;
  }
  Region& region = **found;
  size_t node = 1;
  unsigned at = kOrders - 1;
  for (; at > order; --at) node = 2 * node + (region.tree[2 * node] > order ? 0 : 1);
  region.tree[node] = 0;
  update_parents(region, node, order);
  return region.memory + (node - (size_t{1} << (kOrders - 1 - order))) * (kBlockBytesMin << order);
}

void BuddyPool::release(void* block, size_t bytes) noexcept {
  const unsigned order = order_of(bytes);
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(regions_.begin(), regions_.end(), [&](const auto& r) {
    return block >= r->memory && block < r->memory + kHugePageBytes;
  });
  Region& region = **found;
  const auto offset = static_cast<size_t>(static_cast<std::byte*>(block) - region.memory);
  const size_t node = (size_t{1} << (kOrders - 1 - order)) + offset / (kBlockBytesMin << order);
  region.tree[node] = static_cast<uint8_t>(order + 1);
  update_parents(region, node, order);
  if (region.tree[1] != kOrders) return;
  unmap_huge(region.memory, kHugePageBytes);
  regions_.erase(found);
}

}  // namespace embedstore
