// Rows that come and go against a model: what is kept, what is given back, and what happens when memory runs out.
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "native/rows.h"

using namespace embedstore;
using embedstore::test::fail_allocations_after;
using embedstore::test::Random;

namespace {

struct Expected {
  uint64_t id;
  uint64_t version;
};

template <class Call>
auto without_memory(Call call) {
  fail_allocations_after(0);
  const auto result = call();
  fail_allocations_after(-1);
  return result;
}

// Rows and what they should hold, by number.
class Machine {
 public:
  Machine(uint32_t dim, uint64_t seed)
      : layout_(dim, 0), pool_(layout_.slab_bytes), rows_(layout_, pool_), random_{seed} {}

  void insert(size_t count) {
    if (random_.below(4) == 0) {
      fail_allocations_after(static_cast<long>(random_.below(6)));
      try {
        rows_.reserve(count);
      } catch (const std::bad_alloc&) {
        fail_allocations_after(-1);
        check();
      }
      fail_allocations_after(-1);
    }
    rows_.reserve(count);
    rows_.set_newest(++version_);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t row = without_memory([&] { return rows_.allocate(++ids_); });
      CHECK(!model_.contains(row) && !rows_.in_use(row));
      CHECK(row == lowest_free());
      fill(row, {ids_, version_});
    }
  }

  void remove(size_t count) {
    for (; count > 0 && !model_.empty(); --count) {
      auto chosen = model_.lower_bound(static_cast<uint32_t>(random_.below(model_.rbegin()->first + 1)));
      without_memory([&] { return rows_.release(chosen->first), true; });
      model_.erase(chosen);
    }
  }

  void update(size_t count) {
    rows_.set_newest(++version_);
    for (; count > 0 && !model_.empty(); --count) {
      auto chosen = model_.lower_bound(static_cast<uint32_t>(random_.below(model_.rbegin()->first + 1)));
      fill(chosen->first, {chosen->second.id, version_});
    }
  }

  void compact(size_t count) {
    for (; count > 0; --count) {
      const bool dense = model_.empty() || model_.rbegin()->first + 1 == model_.size();
      const uint32_t to = lowest_free();
      const Rows::Move move = without_memory([&] { return rows_.compact_one(); });
      CHECK((move.from == kNoRow) == dense && (move.to == kNoRow) == dense);
      if (dense) break;
      CHECK(move.from == model_.rbegin()->first && move.to == to);
      model_[to] = model_.rbegin()->second;
      model_.erase(std::prev(model_.end()));
    }
  }

  // Also when the first slab cannot move.
  void trim() {
    if (random_.below(3) == 0) fail_allocations_after(0);
    const size_t before = rows_.memory_bytes();
    rows_.trim();
    fail_allocations_after(-1);
    CHECK(rows_.memory_bytes() <= before);
    if (rows_.size() == 0) CHECK(rows_.memory_bytes() < 200 && pool_.usage().slabs == 0);
  }

  void compact_while_sparse() {
    if (!rows_.sparse()) return;
    const size_t before = rows_.memory_bytes();
    compact(SIZE_MAX);
    rows_.trim();
    CHECK(rows_.memory_bytes() < before && !rows_.sparse());
    const size_t slabs = pool_.usage().slabs;
    rows_.reserve(rows_.size() / 4);  // what was given back is not all needed again soon
    CHECK(rows_.memory_bytes() < before && (slabs == 0 || !rows_.sparse()));
  }

  void check() const {
    CHECK(rows_.size() == model_.size());
    CHECK(rows_.end() == (model_.empty() ? 0 : model_.rbegin()->first + 1));
    std::vector<uint32_t> changed;
    const uint64_t since = version_ > 3 ? version_ - 3 : 0;
    rows_.changed_since(since, changed);
    auto next = changed.begin();
    for (uint32_t row = 0; row < rows_.end(); ++row) {
      const auto known = model_.find(row);
      CHECK(rows_.in_use(row) == (known != model_.end()));
      if (known == model_.end()) continue;
      CHECK(rows_.header(row).id() == known->second.id && rows_.version(row) == known->second.version);
      CHECK(rows_.embedding(row)[0] == mark(known->second) &&
            rows_.embedding(row)[layout_.dim - 1] == mark(known->second));
      if (known->second.version <= since) continue;
      CHECK(next != changed.end() && *next == row);
      ++next;
    }
    CHECK(next == changed.end());
    const size_t slabs = pool_.usage().slabs;
    CHECK(slabs * layout_.slab_rows >= (model_.size() < layout_.slab_rows ? 0 : model_.size()));
  }

  size_t size() const { return model_.size(); }
  uint32_t slab_rows() const { return layout_.slab_rows; }

 private:
  static float mark(const Expected& row) { return static_cast<float>(row.id * 31 + row.version); }

  void fill(uint32_t row, const Expected& content) {
    model_[row] = content;
    rows_.header(row).updates = 0;
    rows_.embedding(row)[0] = rows_.embedding(row)[layout_.dim - 1] = mark(content);
    rows_.set_version(row, content.version);
  }

  uint32_t lowest_free() const {
    uint32_t row = 0;
    if (!model_.empty() && model_.rbegin()->first + 1 == model_.size()) return static_cast<uint32_t>(model_.size());
    while (model_.contains(row)) ++row;
    return row;
  }

  const RowLayout layout_;
  SlabPool pool_;
  Rows rows_;
  std::map<uint32_t, Expected> model_;
  Random random_;
  uint64_t version_ = 0;
  uint64_t ids_ = 0;
};

// Of the pages that the slabs touch; those of two slabs count once.
size_t resident_bytes(std::vector<std::byte*> slabs, size_t slab_bytes) {
  std::sort(slabs.begin(), slabs.end());
  size_t pages = 0;
  uintptr_t counted = 0;
  for (const std::byte* slab : slabs) {
    const auto begin = reinterpret_cast<uintptr_t>(slab);
    for (uintptr_t page = begin / 4096 * 4096; page < begin + slab_bytes; page += 4096) {
      unsigned char resident = 0;
      if (page < counted) continue;
      counted = page + 1;
      // fails where nothing is mapped
      pages += mincore(reinterpret_cast<void*>(page), 4096, &resident) == 0 && (resident & 1) != 0;
    }
  }
  return pages * 4096;
}

}  // namespace

TEST(rows_come_go_and_move_together_as_in_a_model) {
  for (const uint32_t dim : {1u, 64u, 1000u, 4096u}) {
    for (uint64_t seed = 1; seed <= 12; ++seed) {
      Machine machine(dim, seed);
      Random random{seed * 77 + dim};
      const size_t many = dim == 1 ? 600 : dim == 64 ? 300 : 12;
      for (int step = 0; step < 60; ++step) {
        switch (random.below(7)) {
          case 0:
          case 1:
            machine.insert(random.below(many));
            break;
          case 2:
            machine.remove(random.below(random.below(5) == 0 ? 100 * many : many));
            break;
          case 3:
            machine.update(random.below(many));
            break;
          case 4:
            machine.compact(random.below(many));
            break;
          case 5:
            machine.trim();
            break;
          default:
            machine.compact_while_sparse();
        }
        machine.check();
      }
      machine.remove(machine.size());
      machine.trim();
      machine.check();
    }
  }
}

TEST(slabs_are_handed_out_lowest_first_and_keep_their_contents) {
  SlabPool pool(21 * 276);
  std::vector<uint32_t*> slabs;
  const size_t words = pool.slab_bytes() / 4;
  for (uint32_t i = 0; i < 4000; ++i) {
    slabs.push_back(static_cast<uint32_t*>(pool.allocate()));
    slabs.back()[0] = slabs.back()[words - 1] = i;
  }
  CHECK(pool.usage().slabs == 4000 && pool.usage().regions == 2);
  Random random{9};
  std::vector<uint32_t> gone;
  for (uint32_t i = 0; i < 4000; ++i) {
    if (random.below(2) == 0) continue;
    pool.release(slabs[i]);
    gone.push_back(i);
  }
  CHECK(pool.usage().slabs == 4000 - gone.size());
  for (uint32_t i = 0; i < 4000; ++i)
    if (!std::binary_search(gone.begin(), gone.end(), i)) CHECK(slabs[i][0] == i && slabs[i][words - 1] == i);
  for (const uint32_t i : gone) CHECK(pool.allocate() == slabs[i]);
  for (uint32_t* slab : slabs) pool.release(slab);
  CHECK(pool.usage().slabs == 0 && pool.usage().regions == 0);
}

TEST(pages_of_slabs_given_back_go_to_the_system) {
  for (const size_t slab_bytes : {size_t{4096}, size_t{21 * 276}, size_t{2 * 49172}}) {
    SlabPool pool(slab_bytes);
    std::vector<std::byte*> slabs;
    const size_t count = 3 * pool.slabs_per_region();
    for (size_t i = 0; i < count; ++i) {
      slabs.push_back(static_cast<std::byte*>(pool.allocate()));
      std::fill_n(slabs.back(), slab_bytes, static_cast<std::byte>(i));
    }
    const std::vector<std::byte*> all = slabs;
    CHECK(resident_bytes(all, slab_bytes) >= count * slab_bytes);
    std::vector<std::pair<std::byte*, std::byte>> left;
    for (size_t i = 0; i < count; ++i) left.emplace_back(slabs[i], static_cast<std::byte>(i));
    Random random{slab_bytes};
    while (left.size() > count / 10) {  // the worst order: regions and huge pages stay in use
      std::swap(left[random.below(left.size())], left.back());
      pool.release(left.back().first);
      left.pop_back();
      if (left.size() % (count / 8) != 0) continue;
      const size_t in_use = left.size() * (slab_bytes + 2 * 4096);  // with the pages that they share
      CHECK(resident_bytes(all, slab_bytes) <= in_use * 4 / 3);
    }
    for (const auto& [slab, content] : left)
      CHECK(std::all_of(slab, slab + slab_bytes, [content = content](std::byte b) { return b == content; }));
    for (const auto& [slab, content] : left) pool.release(slab);
    CHECK(pool.usage().regions == 0 && resident_bytes(all, slab_bytes) == 0);
  }
}

TEST(slab_pool_is_unchanged_when_memory_runs_out) {
  SlabPool pool(4096);
  std::vector<void*> slabs;
  for (long allowed = 0; slabs.size() < 3 * pool.slabs_per_region(); ++allowed) {
    fail_allocations_after(allowed % 8);
    try {
      for (;;) {
        void* slab = pool.allocate();
        fail_allocations_after(-1);
        slabs.push_back(slab);
        if (slabs.size() % pool.slabs_per_region() == 0) break;
        fail_allocations_after(0);
      }
    } catch (const std::bad_alloc&) {
      fail_allocations_after(-1);
      CHECK(slabs.size() % pool.slabs_per_region() == 0 && pool.usage().slabs == slabs.size());
    }
  }
  fail_allocations_after(0);
  for (void* slab : slabs) pool.release(slab);
  fail_allocations_after(-1);
  CHECK(pool.usage().regions == 0);
}

TEST(slab_pool_serves_threads_at_once) {
  SlabPool pool(6 * 4096);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      Random random{t};
      std::vector<uint64_t*> mine;
      for (int step = 0; step < 3000; ++step) {
        if (mine.size() < 50 || (mine.size() < 400 && random.below(2) == 0)) {
          mine.push_back(static_cast<uint64_t*>(pool.allocate()));
          mine.back()[0] = mine.back()[3000] = t;
        } else {
          std::swap(mine[random.below(mine.size())], mine.back());
          CHECK(mine.back()[0] == t && mine.back()[3000] == t);
          pool.release(mine.back());
          mine.pop_back();
        }
      }
      for (uint64_t* slab : mine) CHECK(slab[0] == t && slab[3000] == t);
      for (uint64_t* slab : mine) pool.release(slab);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(pool.usage().regions == 0);
}
