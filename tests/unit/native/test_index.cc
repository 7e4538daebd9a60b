#include <cstdint>
#include <new>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "native/index.h"

using namespace embedstore;
using embedstore::test::fail_allocations_after;
using embedstore::test::Random;

namespace {

// Rows that only know the hash of their id.
struct FakeRows final : RowHashes {
  std::vector<uint64_t> hashes;
  mutable uint64_t asked = 0;
  uint64_t hash_of(uint32_t row) const noexcept override {
    ++asked;
    return hashes[row];
  }
  uint32_t add(uint64_t hash) {
    hashes.push_back(hash);
    return static_cast<uint32_t>(hashes.size() - 1);
  }
};

uint32_t find(const Index& index, const FakeRows& rows, uint64_t hash) {
  return index.find(hash, [&](uint32_t row) { return rows.hashes[row] == hash; });
}

}  // namespace

namespace {

// Every entry of the model is found, and ids that are not in it are not.
void check_equal(const Index& index, const FakeRows& rows, const std::unordered_map<uint64_t, uint32_t>& model,
                 Random& random) {
  CHECK(index.size() == model.size());
  for (const auto& [hash, row] : model) CHECK(find(index, rows, hash) == row);
  for (int i = 0; i < 10000; ++i) {
    const uint64_t hash = random.next();
    CHECK(find(index, rows, hash) == (model.contains(hash) ? model.at(hash) : kNoRow));
  }
}

// Ids of which many have the same tag and place in any index.
uint64_t colliding_hash(uint64_t i) { return i << 48 | 0x123456789ABC; }

}  // namespace

TEST(index_equals_a_map_through_growth_erases_updates_and_shrinks) {
  Random random{11};
  BuddyPool pool;
  for (BuddyPool* from : {static_cast<BuddyPool*>(nullptr), &pool}) {
    Index index(from);
    FakeRows rows;
    std::unordered_map<uint64_t, uint32_t> model;
    std::vector<uint64_t> present;
    CHECK(find(index, rows, 42) == kNoRow);
    for (const unsigned erases_in_ten : {2, 9, 1, 8, 3, 9, 10}) {
      for (int i = 0; i < 60000 && (erases_in_ten < 8 || !present.empty()); ++i) {
        if (random.below(10) < erases_in_ten && !present.empty()) {
          const size_t victim = random.below(present.size());
          const uint64_t hash = present[victim];
          index.erase(hash, model.at(hash));
          CHECK(find(index, rows, hash) == kNoRow);
          model.erase(hash);
          present[victim] = present.back();
          present.pop_back();
        } else if (!present.empty() && random.below(10) == 0) {
          const uint64_t hash = present[random.below(present.size())];
          const uint32_t row = rows.add(hash);
          index.update(hash, model.at(hash), row);
          model[hash] = row;
        } else {
          const uint64_t hash = random.below(1000) == 0 ? colliding_hash(static_cast<uint64_t>(i)) : random.next();
          if (model.contains(hash)) continue;
          const uint32_t row = rows.add(hash);
          index.insert(hash, row, rows);
          model[hash] = row;
          present.push_back(hash);
        }
        if (random.below(1000) == 0) index.shrink(rows);
      }
      check_equal(index, rows, model, random);
      index.shrink(rows);
      check_equal(index, rows, model, random);
    }
    CHECK(model.empty());
    CHECK(index.memory_bytes() == 0);
  }
  CHECK(pool.num_regions() == 0);
}

TEST(index_finds_everything_after_every_step_of_growth) {
  Random random{17};
  Index index;
  FakeRows rows;
  size_t bytes = 0;
  int steps = 0;
  while (rows.hashes.size() < 100000) {
    const uint64_t hash = random.next();
    index.insert(hash, rows.add(hash), rows);
    if (index.memory_bytes() == bytes) continue;
    bytes = index.memory_bytes();
    ++steps;
    for (uint32_t row = 0; row < rows.hashes.size(); ++row) CHECK(find(index, rows, rows.hashes[row]) == row);
  }
  CHECK(steps > 50);
}

TEST(index_takes_little_memory_at_every_size_and_grows_in_small_steps_without_reading_rows) {
  Random random{12};
  BuddyPool pool;
  Index index(&pool);
  FakeRows rows;
  size_t bytes = 0;
  for (size_t i = 0; i < 350000; ++i) {
    const uint64_t hash = random.next();
    index.insert(hash, rows.add(hash), rows);
    const size_t now = index.memory_bytes();
    if (i > 2000 && now > bytes) {
      CHECK(now <= 14 * index.size());
      // A step reads as many buckets as it makes.
      CHECK(now - bytes <= bytes / 8 + 1024);
      CHECK(now - bytes <= Index::kBlockBucketsMax * sizeof(Bucket) + 1024);
    }
    bytes = now;
  }
  CHECK(rows.asked == 0);
  CHECK(pool.num_regions() * kHugePageBytes < bytes * 2);
}

TEST(index_beyond_65536_buckets_finds_everything) {
  Random random{13};
  Index index;
  FakeRows rows;
  for (int i = 0; i < 1000000; ++i) {
    const uint64_t hash = random.next();
    index.insert(hash, rows.add(hash), rows);
  }
  CHECK(rows.asked > 0);
  for (uint32_t row = 0; row < rows.hashes.size(); ++row) CHECK(find(index, rows, rows.hashes[row]) == row);
}

TEST(index_update_names_another_row_also_in_the_stash) {
  Random random{15};
  Index index;
  FakeRows rows;
  for (uint64_t i = 0; i < 5000; ++i) {
    const uint64_t hash = i < 100 ? colliding_hash(i) : random.next();
    index.insert(hash, rows.add(hash), rows);
  }
  const std::vector<uint64_t> hashes = rows.hashes;
  for (uint32_t row = 0; row < 5000; ++row) index.update(hashes[row], row, rows.add(hashes[row]));
  CHECK(index.size() == 5000);
  for (uint32_t row = 0; row < 5000; ++row) {
    CHECK(find(index, rows, hashes[row]) == row + 5000);
  }
}

TEST(index_shrinks_to_what_it_holds_and_not_before) {
  Random random{16};
  Index index;
  FakeRows rows;
  constexpr uint32_t kColliding = 100;
  for (uint64_t i = 0; i < 300000; ++i) {
    const uint64_t hash = i < kColliding ? colliding_hash(i) : random.next();
    index.insert(hash, rows.add(hash), rows);
  }
  uint32_t left = 300000;
  while (left > kColliding) {
    const size_t before = index.memory_bytes();
    index.shrink(rows);
    CHECK(index.memory_bytes() <= before);
    if (left > 2000) CHECK(index.memory_bytes() < left * 30);
    for (uint32_t row = 0; row < left; row += 7) CHECK(find(index, rows, rows.hashes[row]) == row);
    const uint32_t fewer = left - left / 3 > kColliding ? left - left / 3 : kColliding;
    for (; left > fewer; --left) index.erase(rows.hashes[left - 1], left - 1);
    CHECK(index.size() == left);
  }
  for (uint32_t row = 0; row < kColliding; ++row) {
    CHECK(find(index, rows, rows.hashes[row]) == row);
    index.erase(rows.hashes[row], row);
  }
  index.shrink(rows);
  CHECK(index.size() == 0);
  CHECK(index.memory_bytes() < 5000);
  index.insert(rows.hashes[7], 7, rows);
  CHECK(find(index, rows, rows.hashes[7]) == 7);
}

TEST(index_survives_hashes_chosen_to_collide) {
  Index index;
  FakeRows rows;
  // The same tag and place: no number of buckets can tell them apart.
  for (uint64_t i = 0; i < 500; ++i) {
    const uint64_t hash = colliding_hash(i);
    index.insert(hash, rows.add(hash), rows);
  }
  CHECK(index.memory_bytes() < 100000);
  Random random{14};
  for (int i = 0; i < 20000; ++i) {
    const uint64_t hash = random.next();
    index.insert(hash, rows.add(hash), rows);
  }
  for (uint32_t row = 0; row < rows.hashes.size(); ++row) CHECK(find(index, rows, rows.hashes[row]) == row);
  for (uint32_t row = 0; row < 500; row += 2) index.erase(rows.hashes[row], row);
  for (uint32_t row = 0; row < 500; ++row) CHECK(find(index, rows, rows.hashes[row]) == (row % 2 == 0 ? kNoRow : row));
}

TEST(index_is_unchanged_when_memory_runs_out) {
  Random random{18};
  FakeRows rows;
  std::unordered_map<uint64_t, uint32_t> model;
  Index index;
  rows.hashes.reserve(20000);
  model.reserve(20000);
  int failures = 0;
  const auto try_all = [&](auto change) {
    for (long allocations = 0;; ++allocations) {
      fail_allocations_after(allocations);
      try {
        change();
        fail_allocations_after(-1);
        return;
      } catch (const std::bad_alloc&) {
        fail_allocations_after(-1);
        ++failures;
        if (model.size() % 16 == 0) check_equal(index, rows, model, random);
        CHECK(index.size() == model.size());
      }
    }
  };
  for (uint64_t i = 0; i < 8000; ++i) {
    const uint64_t hash = i % 100 == 0 ? colliding_hash(i) : random.next();
    const uint32_t row = rows.add(hash);
    try_all([&] { index.insert(hash, row, rows); });
    model[hash] = row;
  }
  check_equal(index, rows, model, random);
  CHECK(failures > 60);
  for (uint32_t row = 500; row < 8000; ++row) {
    index.erase(rows.hashes[row], row);
    model.erase(rows.hashes[row]);
  }
  const int before = failures;
  const size_t bytes = index.memory_bytes();
  try_all([&] { index.shrink(rows); });
  CHECK(failures > before + 2);
  CHECK(index.memory_bytes() < bytes / 8);
  check_equal(index, rows, model, random);
}

TEST(bucket_compare_is_exact_in_every_slot) {
  Bucket bucket{};
  for (unsigned s = 0; s < Bucket::kSlots; ++s) {
    bucket.tags[s] = static_cast<uint16_t>(0x8000 + s / 2);
    bucket.homes[s] = static_cast<uint16_t>(0xFFFF - s);
  }
  for (unsigned s = 0; s < Bucket::kSlots; ++s) {
    CHECK(bucket.match(bucket.tags[s], bucket.homes[s]) == 1u << s);
    CHECK(bucket.match(bucket.tags[s], 0) == 0);
    CHECK(bucket.empty() == 0);
  }
  bucket.tags[3] = bucket.tags[7] = 0;
  CHECK(bucket.empty() == (1u << 3 | 1u << 7));
}

TEST(bucket_compare_with_vectors_equals_the_portable_one) {
  Random random{19};
  for (int i = 0; i < 100000; ++i) {
    Bucket bucket;
    const uint64_t values = random.below(4) + 1;  // few different ones, so that many are equal
    for (unsigned s = 0; s < Bucket::kSlots; ++s) {
      bucket.tags[s] = static_cast<uint16_t>(random.below(values) * 0x4001);
      bucket.homes[s] = static_cast<uint16_t>(random.below(values) * 0x5555);
      bucket.rows[s] = static_cast<uint32_t>(random.next());
    }
    const auto tag = static_cast<uint16_t>(random.below(values) * 0x4001);
    const auto home = static_cast<uint16_t>(random.below(values) * 0x5555);
    CHECK(bucket.match(tag, home) == bucket.match_portable(tag, home));
    CHECK(bucket.empty() == bucket.empty_portable());
  }
}
