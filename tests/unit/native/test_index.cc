#include <cstdint>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "native/index.h"

using namespace embedstore;
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

TEST(index_equals_a_map_through_inserts_and_erases) {
  Random random{11};
  Index index;
  FakeRows rows;
  std::unordered_map<uint64_t, uint32_t> model;
  std::vector<uint64_t> present;
  CHECK(find(index, rows, 42) == kNoRow);
  for (int i = 0; i < 200000; ++i) {
    if (random.below(10) < 3 && !present.empty()) {
      const size_t victim = random.below(present.size());
      const uint64_t hash = present[victim];
      index.erase(hash, model.at(hash));
      CHECK(find(index, rows, hash) == kNoRow);
      model.erase(hash);
      present[victim] = present.back();
      present.pop_back();
    } else {
      const uint64_t hash = random.next();
      index.insert(hash, rows.add(hash), rows);
      model[hash] = static_cast<uint32_t>(rows.hashes.size() - 1);
      present.push_back(hash);
    }
    CHECK(index.size() == model.size());
  }
  for (const auto& [hash, row] : model) CHECK(find(index, rows, hash) == row);
  for (int i = 0; i < 100000; ++i) {
    const uint64_t hash = random.next();
    CHECK(find(index, rows, hash) == (model.contains(hash) ? model.at(hash) : kNoRow));
  }
}

TEST(index_is_filled_to_its_load_without_a_stash_and_grows_without_reading_rows) {
  Random random{12};
  Index index;
  FakeRows rows;
  double bytes_per_entry_least = 1000;
  for (int i = 0; i < 400000; ++i) {
    const uint64_t hash = random.next();
    index.insert(hash, rows.add(hash), rows);
    const double bytes = static_cast<double>(index.memory_bytes()) / static_cast<double>(index.size());
    if (bytes < bytes_per_entry_least) bytes_per_entry_least = bytes;
  }
  CHECK(bytes_per_entry_least < 9.5);  // 64 bytes for 8 slots at 0.85
  CHECK(rows.asked == 0);
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
    const uint64_t hash = i < 100 ? i << 48 | 0x123456789ABC : random.next();
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
    const uint64_t hash = i < kColliding ? i << 48 | 0x123456789ABC : random.next();
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
    const uint64_t hash = i << 48 | 0x123456789ABC;
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
