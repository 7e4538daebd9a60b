// Blocks of 512 B to 1 MiB, each a power of two, cut from huge pages: for the buckets of all chunks of one table, which
// would otherwise lie scattered over small pages and cost a page walk a lookup.
//
// A buddy allocator (Knowlton 1965). Invariants: a region is one huge page; its tree has a node for every possible
// block, and a node holds 1 + the order of the largest free block below it, 0 for none (order 0 is 512 B). Two free
// halves are one free block again, and a region that is free as a whole goes back to the system. Callable from any
// thread; one mutex, taken for a block and never for a row. Regions are kept in the order of their addresses; the
// lowest one with room is taken, so that the others can become free.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "native/huge_pages.h"

namespace embedstore {

class BuddyPool {
 public:
  static constexpr size_t kBlockBytesMin = 512;
  static constexpr size_t kBlockBytesMax = size_t{1} << 20;

  BuddyPool() = default;
  ~BuddyPool();
  BuddyPool(const BuddyPool&) = delete;
  BuddyPool& operator=(const BuddyPool&) = delete;

  // `bytes`: a power of two within the limits. The contents are undefined. Throws std::bad_alloc.
  void* allocate(size_t bytes);
  void release(void* block, size_t bytes) noexcept;
  size_t num_regions() const;

 private:
  static constexpr unsigned kOrders = 13;  // 512 B << 12 is the region
  // Node i has the children 2i and 2i + 1; the root is 1.
  using Tree = std::array<uint8_t, size_t{2} << (kOrders - 1)>;
  struct Region {
    std::byte* memory;
    std::unique_ptr<Tree> tree;
    uint8_t largest;  // the root's value, here so that a search reads no trees
  };
  static void update_parents(Region& region, size_t node, unsigned order) noexcept;

  mutable std::mutex mutex_;
  std::vector<Region> regions_;
};

}  // namespace embedstore
