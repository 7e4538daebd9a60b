#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "native/batch.h"
#include "native/crc32c.h"
#include "native/flat_map.h"
#include "native/half.h"
#include "native/hash.h"
#include "native/tombstones.h"
#include "native/watermarks.h"

using namespace embedstore;
using embedstore::test::Random;

TEST(crc32c_has_the_published_values_with_and_without_hardware) {
  const std::string digits = "123456789";
  CHECK(crc32c(digits.data(), digits.size()) == 0xE3069283);
  const std::vector<uint8_t> zeros(32, 0);
  CHECK(crc32c(zeros.data(), zeros.size()) == 0x8A9136AA);
  Random random{1};
  std::vector<uint8_t> bytes(30'000);
  for (auto& byte : bytes) byte = static_cast<uint8_t>(random.next());
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t size = 0; size < 300; size += 7) {
      const uint32_t whole = crc32c(bytes.data() + begin, size);
      CHECK(whole == crc32c_portable(bytes.data() + begin, size));
      CHECK(whole == crc32c(bytes.data() + begin + size / 2, size - size / 2, crc32c(bytes.data() + begin, size / 2)));
    }
  }
  for (const size_t size : {767u, 768u, 769u, 1540u, 12'287u, 12'288u, 12'289u, 29'000u})
    for (size_t begin = 0; begin < 9; ++begin)
      CHECK(crc32c(bytes.data() + begin, size, 77) == crc32c_portable(bytes.data() + begin, size, 77));
}

TEST(mix64_is_a_bijection_on_a_sample_and_shards_tile_the_chunks) {
  CHECK(mix64(0) == 0);
  for (uint32_t num_chunks : {1u, 8u, 256u}) {
    for (uint32_t num_shards = 1; num_shards <= num_chunks; num_shards = num_shards * 3 / 2 + 1) {
      for (uint32_t i = 0; i < num_shards; ++i) {
        const auto begin = static_cast<uint32_t>(uint64_t{i} * num_chunks / num_shards);
        const auto end = static_cast<uint32_t>((uint64_t{i} + 1) * num_chunks / num_shards);
        for (uint32_t chunk = begin; chunk < end; ++chunk) CHECK(shard_of(chunk, num_chunks, num_shards) == i);
      }
    }
  }
}

TEST(partner_is_an_involution_that_never_stays) {
  Random random{2};
  for (int i = 0; i < 10000; ++i) {
    const auto bucket = static_cast<uint32_t>(random.next());
    const uint16_t tag = tag_of(random.next());
    CHECK(tag != 0);
    CHECK(partner_of(partner_of(bucket, tag), tag) == bucket);
    CHECK(((partner_of(bucket, tag) ^ bucket) & 1) == 1);
  }
}

TEST(flat_map_equals_unordered_map) {
  Random random{3};
  FlatMap map;
  std::unordered_map<uint64_t, uint64_t> model;
  for (int i = 0; i < 60000; ++i) {
    const uint64_t key = random.below(5) == 0 ? ~random.below(3) : random.below(300);
    if (random.below(3) == 0) {
      CHECK(map.erase(key) == (model.erase(key) == 1));
    } else {
      map.reserve(1);
      map.set(key, i + 1);
      model[key] = i + 1;
    }
    CHECK(map.size() == model.size());
    const auto found = model.find(key);
    CHECK(map.get(key) == (found == model.end() ? 0 : found->second));
  }
  size_t seen = 0;
  map.for_each([&](uint64_t key, uint64_t value) {
    CHECK(model.at(key) == value);
    ++seen;
  });
  CHECK(seen == model.size());
}

TEST(half_rounds_to_nearest_even) {
  CHECK(half_of(0.0f) == 0 && half_of(-0.0f) == 0x8000);
  CHECK(half_of(1.0f) == 0x3C00 && half_of(65504.0f) == 0x7BFF && half_of(65520.0f) == 0x7C00);
  CHECK(half_of(INFINITY) == 0x7C00 && half_of(-INFINITY) == 0xFC00);
  CHECK(half_of(0x1p-24f) == 1 && half_of(0x1p-25f) == 0 && half_of(0x1.8p-24f) == 2);
  CHECK((half_of(NAN) & 0x7C00) == 0x7C00 && (half_of(NAN) & 0x3FF) != 0);
  // Every number halfway between two neighbours goes to the even one, its neighbours to theirs.
  const auto value_of = [](uint32_t half) { return std::ldexp((half & 0x3FF) + 1024.0f, int(half >> 10) - 25); };
  for (uint32_t half = 0x0400; half < 0x7BFF; ++half) {
    const float low = value_of(half);
    const float middle = (low + value_of(half + 1)) / 2;
    CHECK(half_of(low) == half);
    CHECK(half_of(middle) == half + (half & 1));
    CHECK(half_of(std::nextafter(middle, 0.0f)) == half);
    CHECK(half_of(std::nextafter(middle, INFINITY)) == half + 1);
  }
}

TEST(half_is_the_same_with_and_without_hardware) {
  Random random{4};
  std::vector<float> values(4099);
  for (int round = 0; round < 40; ++round) {
    for (auto& value : values) {
      const auto bits = static_cast<uint32_t>(random.next());
      value = std::bit_cast<float>(round % 2 == 0 ? bits : (bits & 0x87FFFFFF) + 0x34000000);
    }
    std::vector<uint16_t> halves(values.size());
    to_half(values.data(), values.size(), halves.data());
    for (size_t i = 0; i < values.size(); ++i) CHECK(halves[i] == half_of(values[i]));
  }
}

TEST(partition_keeps_every_item_once_in_order) {
  Random random{5};
  Partition partition;
  for (const size_t count : {size_t{0}, size_t{1}, size_t{5}, size_t{31}, size_t{32}, size_t{5000}}) {
    for (const unsigned bits : {0u, 8u, 16u}) {
      std::vector<uint64_t> ids(count);
      for (auto& id : ids) id = random.below(count * 2 + 1);
      partition.build(ids.data(), nullptr, count, bits);
      std::vector<bool> seen(count);
      int64_t last_chunk = -1;
      for (const auto& group : partition.groups()) {
        CHECK(int64_t{group.chunk} > last_chunk && group.end > group.begin);
        last_chunk = group.chunk;
        const Items items = partition.items(group);
        for (size_t i = 0; i < items.count; ++i) {
          CHECK(i == 0 || items.sources[i] > items.sources[i - 1]);
          CHECK(items.ids[i] == ids[items.sources[i]] && items.hashes[i] == mix64(items.ids[i]));
          CHECK(chunk_of(items.hashes[i], bits) == group.chunk && !seen[items.sources[i]]);
          seen[items.sources[i]] = true;
        }
      }
      for (const bool s : seen) CHECK(s);
    }
  }
}

TEST(distinct_chains_list_the_occurrences) {
  Random random{6};
  Distinct distinct;
  std::vector<uint64_t> ids(3000);
  for (auto& id : ids) id = random.below(900) - 450;
  distinct.build(ids.data(), ids.size());
  size_t total = 0;
  for (uint32_t u = 0; u < distinct.size(); ++u) {
    uint32_t last = 0;
    for (uint32_t i = distinct.first(u); i != Distinct::kEnd; i = distinct.next(i), ++total) {
      CHECK(ids[i] == distinct.ids()[u] && distinct.distinct_of(i) == u);
      CHECK(i == distinct.first(u) || i > last);
      last = i;
    }
  }
  CHECK(total == ids.size());
}

TEST(tombstones_keep_the_newest_and_raise_the_horizon) {
  Tombstones tombstones;
  for (uint64_t version = 1; version <= 100; ++version) {
    tombstones.reserve(1);
    tombstones.add({version, version, Reason::kErased});
    tombstones.settle(16);
    CHECK(tombstones.size() <= 16);
    std::vector<Tombstone> kept;
    tombstones.since(tombstones.horizon(), kept);
    CHECK(kept.size() == tombstones.size());
    for (size_t i = 0; i < kept.size(); ++i) CHECK(kept[i].version == tombstones.horizon() + 1 + i);
  }
  tombstones.remove(100);
  std::vector<Tombstone> kept;
  tombstones.since(98, kept);
  CHECK(kept.size() == 1 && kept[0].id == 99);
  tombstones.reserve(2);
  tombstones.add({99, 101, Reason::kExpired});
  tombstones.add({99, 101, Reason::kExpired});
  kept.clear();
  tombstones.since(98, kept);
  CHECK(kept.size() == 1 && kept[0].version == 101 && kept[0].reason == Reason::kExpired);
}

TEST(tombstones_of_ids_that_come_and_go_stay_bounded) {
  Tombstones tombstones;
  size_t most = 0;
  for (uint64_t version = 1; version <= 100000; ++version) {
    tombstones.reserve(1);
    tombstones.add({version % 7, version, Reason::kEvicted});
    tombstones.settle(8192);
    if (version % 3 == 0) tombstones.remove(version % 7);
    if (tombstones.memory_bytes() > most) most = tombstones.memory_bytes();
  }
  CHECK(tombstones.horizon() == 0);
  CHECK(most < 8192);
}

TEST(origins_decide_per_set_and_equal_sets_are_shared_again) {
  const auto set = [](WatermarkList list) { return std::make_shared<const WatermarkSet>(std::move(list)); };
  using Decision = OriginPlan::Decision;
  const std::vector<Origin> origins = {{"b", 5, 9}, {"a", 1, 2}};
  OriginPlan plan(origins);
  CHECK(plan.meet(set({{"a", 1}, {"b", 5}})).decision == Decision::kApply);
  CHECK(plan.meet(set({{"a", 2}, {"b", 9}})).decision == Decision::kSkip);
  CHECK(plan.meet(set({{"a", 3}, {"b", 10}})).decision == Decision::kSkip);
  CHECK(plan.meet(set({{"a", 2}, {"b", 5}})).decision == Decision::kGap);
  CHECK(plan.meet(set({{"a", 1}, {"b", 6}})).decision == Decision::kGap);
  CHECK(plan.meet(set({{"b", 5}})).decision == Decision::kUnknownStream && plan.unknown_stream() == "a");
  const Watermarks first = set({{"a", 1}, {"b", 5}, {"c", 0}});
  const Watermarks second = set({{"a", 1}, {"b", 5}, {"c", 0}});
  const Watermarks after = plan.meet(first).after;
  CHECK(plan.meet(second).after == after);
  CHECK((after->list() == WatermarkList{{"a", 2}, {"b", 9}, {"c", 0}}));
}
