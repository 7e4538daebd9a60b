#include "native/buddy_pool.h"

#include <algorithm>
#include <utility>

namespace embedstore {
namespace {

unsigned order_of(size_t bytes) noexcept {
  unsigned order = 0;
  while ((BuddyPool::kBlockBytesMin << order) < bytes) ++order;
  return order;
}

}  // namespace

BuddyPool::~BuddyPool() {
  for (const auto& region : regions_) unmap_huge(region.memory, kHugePageBytes);
}

size_t BuddyPool::num_regions() const {
  const std::lock_guard lock(mutex_);
  return regions_.size();
}

// `order` is that of `node`, whose own value is already right.
void BuddyPool::update_parents(Region& region, size_t node, unsigned order) noexcept {
  Tree& tree = *region.tree;
  while (node > 1) {
    node /= 2;
    ++order;
    const uint8_t left = tree[2 * node];
    const uint8_t right = tree[2 * node + 1];
    tree[node] = left == order && right == order ? static_cast<uint8_t>(order + 1) : std::max(left, right);
  }
  region.largest = tree[1];
}

void* BuddyPool::allocate(size_t bytes) {
  const unsigned order = order_of(bytes);
  const std::lock_guard lock(mutex_);
  auto found = std::find_if(regions_.begin(), regions_.end(), [&](const Region& r) { return r.largest > order; });
  if (found == regions_.end()) {
    regions_.reserve(regions_.size() + 1);
    auto tree = std::make_unique<Tree>();
    for (unsigned depth = 0; depth < kOrders; ++depth)
      std::fill_n(tree->begin() + (size_t{1} << depth), size_t{1} << depth, static_cast<uint8_t>(kOrders - depth));
    auto* memory = static_cast<std::byte*>(map_huge(kHugePageBytes));
    found = std::find_if(regions_.begin(), regions_.end(), [&](const Region& r) { return r.memory > memory; });
    found = regions_.insert(found, Region{memory, std::move(tree), kOrders});
  }
  Tree& tree = *found->tree;
  size_t node = 1;
  unsigned at = kOrders - 1;
  for (; at > order; --at) node = 2 * node + (tree[2 * node] > order ? 0 : 1);
  tree[node] = 0;
  update_parents(*found, node, order);
  return found->memory + (node - (size_t{1} << (kOrders - 1 - order))) * (kBlockBytesMin << order);
}

void BuddyPool::release(void* block, size_t bytes) noexcept {
  const unsigned order = order_of(bytes);
  const std::lock_guard lock(mutex_);
  const auto after = std::upper_bound(regions_.begin(), regions_.end(), static_cast<std::byte*>(block),
                                      [](const std::byte* b, const Region& r) { return b < r.memory; });
  Region& region = *(after - 1);
  const auto offset = static_cast<size_t>(static_cast<std::byte*>(block) - region.memory);
  const size_t node = (size_t{1} << (kOrders - 1 - order)) + offset / (kBlockBytesMin << order);
  (*region.tree)[node] = static_cast<uint8_t>(order + 1);
  update_parents(region, node, order);
  if (region.largest != kOrders) return;
  unmap_huge(region.memory, kHugePageBytes);
  regions_.erase(after - 1);
}

}  // namespace embedstore
