#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "check.h"
#include "native/buddy_pool.h"
#include "native/rows.h"

using namespace embedstore;
using embedstore::test::Random;

TEST(rows_keep_their_contents_while_slabs_grow_and_move) {
  for (const uint32_t dim : {1u, 7u, 64u, 4096u}) {
    const RowLayout layout(dim, dim);
    CHECK(layout.slab_bytes == layout.slab_rows * layout.row_bytes);
    SlabPool pool(layout.slab_bytes);
    Rows rows(layout, pool);
    const uint32_t count = dim == 4096 ? 700 : 5000;
    for (uint32_t i = 0; i < count; ++i) {
      rows.reserve(1);
      const uint32_t row = rows.allocate(i * 0x123456789ull);
      rows.set_newest(i + 1);
      rows.set_version(row, i + 1);
      rows.embedding(row)[dim - 1] = static_cast<float>(i);
      rows.state(row)[dim - 1] = -static_cast<float>(i);
    }
    CHECK(rows.size() == count && rows.end() == count);
    for (uint32_t row = 0; row < count; ++row) {
      CHECK(rows.header(row).id() == row * 0x123456789ull && rows.version(row) == row + 1);
      CHECK(rows.embedding(row)[dim - 1] == static_cast<float>(row));
      CHECK(rows.state(row)[dim - 1] == -static_cast<float>(row));
    }
  }
}

TEST(packed_rows_take_the_bytes_of_their_type) {
  const auto bytes = [](uint32_t dim, RowType type) {
    const RowLayout layout(dim, 0, type);
    CHECK(layout.row_bytes == sizeof(RowHeader) + layout.embedding_bytes && layout.row_bytes % 4 == 0);
    CHECK(layout.slab_bytes == layout.slab_rows * layout.row_bytes);
    return layout.embedding_bytes;
  };
  CHECK(bytes(64, RowType::kFloat32) == 256 && bytes(64, RowType::kFloat16) == 128);
  CHECK(bytes(64, RowType::kInt8) == 72 && bytes(64, RowType::kInt4) == 40);  // 56.25 % and 31.25 % of float16
  CHECK(bytes(33, RowType::kFloat16) == 68 && bytes(33, RowType::kInt8) == 44 && bytes(33, RowType::kInt4) == 28);
  CHECK(bytes(1, RowType::kFloat16) == 4 && bytes(1, RowType::kInt8) == 8 && bytes(1, RowType::kInt4) == 8);

  const RowLayout layout(3, 0, RowType::kInt8);
  SlabPool pool(layout.slab_bytes);
  Rows rows(layout, pool);
  rows.reserve(1000);
  for (uint32_t i = 0; i < 1000; ++i) {
    const uint32_t row = rows.allocate(i);
    for (size_t b = 0; b < layout.embedding_bytes; ++b) rows.packed(row)[b] = static_cast<std::byte>(i);
  }
  for (uint32_t row = 0; row < 1000; ++row) {
    CHECK(rows.header(row).id() == row && rows.packed(row)[0] == static_cast<std::byte>(row));
    CHECK(rows.packed(row)[layout.embedding_bytes - 1] == static_cast<std::byte>(row));
  }
}

TEST(rows_reuse_freed_numbers_before_new_ones) {
  const RowLayout layout(4, 0);
  SlabPool pool(layout.slab_bytes);
  Rows rows(layout, pool);
  rows.reserve(100);
  for (uint32_t i = 0; i < 100; ++i) rows.set_version(rows.allocate(i), 0);
  for (uint32_t row = 0; row < 100; row += 2) rows.release(row);
  CHECK(rows.size() == 50);
  const size_t bytes = rows.memory_bytes();
  rows.reserve(50);
  for (uint32_t i = 0; i < 50; ++i) CHECK(rows.allocate(1000 + i) % 2 == 0);
  CHECK(rows.end() == 100 && rows.size() == 100 && rows.memory_bytes() == bytes);
}

TEST(slabs_are_small_and_every_row_is_in_its_slab) {
  CHECK(RowLayout(64, 0).slab_rows == 61);
  for (uint32_t dim = 1; dim <= 4096; dim = dim < 70 ? dim + 1 : dim * 5 / 4) {
    for (const uint32_t state : {0u, 1u, dim, 2 * dim}) {
      const RowLayout layout(dim, state);
      CHECK(layout.slab_bytes == layout.slab_rows * layout.row_bytes && layout.slab_bytes >= 4096);
      CHECK(layout.slab_bytes <= (64 << 10) || layout.slab_rows <= 20);
      Random random{dim};
      for (uint32_t i = 0; i < 200; ++i) {
        const uint32_t slab = random.below(RowLayout::kRowsMax / layout.slab_rows);
        const uint32_t first = slab * layout.slab_rows;
        CHECK(layout.slab_of(first) == slab && layout.slab_of(first + layout.slab_rows - 1) == slab);
      }
      const uint32_t last = RowLayout::kRowsMax - 1;
      CHECK(layout.slab_of(last) == last / layout.slab_rows);
    }
  }
}

TEST(free_set_gives_the_lowest_number_like_a_sorted_set) {
  Random random{3};
  FreeSet set;
  std::set<uint32_t> model;
  size_t limit = 0;
  uint32_t spread = 10;
  for (int step = 0; step < 200000; ++step) {
    if (step % 20000 == 0) {
      spread = step % 40000 == 0 ? 300000 : 100;
      while (!model.empty() && *model.rbegin() >= spread) {
        set.remove(*model.rbegin());
        model.erase(*model.rbegin());
      }
      set.trim(spread);
      limit = std::min<size_t>(limit, spread);
    }
    const auto number = static_cast<uint32_t>(random.below(spread));
    if (number >= limit) set.reserve(limit = number + 1);
    CHECK(set.contains(number) == model.contains(number));
    if (model.contains(number)) {
      set.remove(number);
      model.erase(number);
    } else {
      set.add(number);
      model.insert(number);
    }
    CHECK(set.lowest() == (model.empty() ? FreeSet::kNone : *model.begin()));
    if (step % 5000 != 0) continue;
    auto end = static_cast<uint32_t>(limit);
    for (uint32_t n = end - std::min<uint32_t>(end, static_cast<uint32_t>(random.below(400))); n < end; ++n)
      if (model.insert(n).second) set.add(n);
    while (end > 0 && model.contains(end - 1)) model.erase(--end);
    CHECK(set.drop_tail(static_cast<uint32_t>(limit)) == end);
  }
}

TEST(free_set_drops_long_tails_whole) {
  FreeSet set;
  set.reserve(300000);
  for (const uint32_t begin : {0u, 5u, 4096u, 5000u, 262144u, 270001u}) {
    for (uint32_t n = begin; n < 290000; ++n) set.add(n);
    CHECK(set.lowest() == begin && set.drop_tail(290000) == begin && set.lowest() == FreeSet::kNone);
  }
}

TEST(row_versions_survive_distances_beyond_32_bits) {
  const RowLayout layout(1, 0);
  SlabPool pool(layout.slab_bytes);
  Rows rows(layout, pool);
  rows.reserve(4);
  for (uint32_t i = 0; i < 4; ++i) rows.allocate(i);
  const auto set = [&](uint32_t row, uint64_t version) {
    rows.set_newest(version);
    rows.set_version(row, version);
  };
  const auto changed = [&](uint64_t version) {
    std::vector<uint32_t> out;
    rows.changed_since(version, out);
    return out;
  };
  set(0, 1);
  set(1, 0xFFFFFFFF);
  CHECK(rows.version(0) == 1 && rows.version(1) == 0xFFFFFFFF);
  set(2, 0x100000005);  // moves the base: old rows count as changed later than they were, never earlier
  CHECK(rows.version(0) >= 1 && rows.version(0) < 0xFFFFFFFF);
  CHECK(rows.version(1) == 0xFFFFFFFF && rows.version(2) == 0x100000005);
  set(3, uint64_t{1} << 50);
  CHECK(rows.version(3) == uint64_t{1} << 50 && rows.version(2) >= 0x100000005);
  CHECK(rows.version(2) < uint64_t{1} << 50);
  CHECK((changed((uint64_t{1} << 50) - 1) == std::vector<uint32_t>{3}));
  CHECK(changed(uint64_t{1} << 50).empty());
  CHECK(changed(0).size() == 4);
}

TEST(buddy_blocks_never_overlap_and_everything_goes_back) {
  Random random{15};
  BuddyPool pool;
  struct Block {
    uint64_t* memory;
    size_t bytes;
    uint64_t mark;
  };
  std::vector<Block> blocks;
  const auto check_and_release = [&](size_t i) {
    const Block block = blocks[i];
    CHECK(block.memory[0] == block.mark && block.memory[block.bytes / 8 - 1] == block.mark);
    pool.release(block.memory, block.bytes);
    blocks[i] = blocks.back();
    blocks.pop_back();
  };
  for (uint64_t i = 0; i < 20000; ++i) {
    if (blocks.size() > 60 || (random.below(2) == 0 && !blocks.empty())) {
      check_and_release(random.below(blocks.size()));
      continue;
    }
    const size_t bytes = BuddyPool::kBlockBytesMin << random.below(9);
    auto* memory = static_cast<uint64_t*>(pool.allocate(bytes));
    CHECK(reinterpret_cast<uintptr_t>(memory) % bytes == 0);
    memory[0] = memory[bytes / 8 - 1] = i;
    blocks.push_back({memory, bytes, i});
  }
  CHECK(pool.num_regions() > 0);
  while (!blocks.empty()) check_and_release(blocks.size() - 1);
  CHECK(pool.num_regions() == 0);
}
