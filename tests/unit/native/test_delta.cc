#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "crafted.h"

using namespace embedstore;
using namespace embedstore::test;

TEST(delta_carries_a_sketch_whole_and_then_by_changed_blocks) {
  Random random{31};
  Sketch sketch(kSketchBytes);
  meet(sketch, random, 900, 1);
  Table table(config_of(), {1, 2});
  CHECK(take(table, Crafted{.ids = ids_of_chunk(0, 20), .sketch = &sketch}.encode()).ok());
  Table chained(config_of(), {3, 4});
  CHECK(take(chained, delta(table, 0)).ok());
  for (uint64_t version = 2; version < 60; ++version) {
    Crafted next{.from = version - 1, .to = version};
    const size_t more = random.below(40);
    meet(sketch, random, more, version);
    next.sketch = &sketch;
    const Bytes bytes = next.encode();
    CHECK(take(table, bytes).ok());
    CHECK(take(chained, delta(table, 0, {500, version - 1 - version % 3})).ok());
    CHECK(digest(table).size() == digest(chained).size());
    CHECK(same_contents(delta(table, 0), delta(chained, 0)));
    if (more == 0) CHECK(bytes.size() < 300);
  }
  CHECK(sketch.halvings() > 0);
  const Bytes whole = Crafted{.to = 60, .ids = ids_of_chunk(0, 20), .sketch = &sketch}.encode();
  const Bytes read = delta(table, 0);
  CHECK(whole.size() == read.size());
  DeltaView view;
  CHECK(DeltaView::parse(read.data(), read.size(), view).ok() && view.header().sketch_halvings == sketch.halvings());
  const size_t sketch_bytes = 12 * size_t{view.header().sketch_blocks} + 8 * view.header().sketch_entries;
  CHECK(std::equal(whole.end() - 4 - static_cast<ptrdiff_t>(sketch_bytes), whole.end() - 4,
                   read.end() - 4 - static_cast<ptrdiff_t>(sketch_bytes)));
}

TEST(delta_without_state_has_no_sketch_and_a_full_one_replaces_it) {
  Random random{32};
  Sketch sketch(kSketchBytes);
  meet(sketch, random, 100, 1);
  const Bytes counted = Crafted{.ids = ids_of_chunk(0, 5), .sketch = &sketch}.encode();
  Table table(config_of(), {1, 2});
  CHECK(take(table, counted).ok());
  DeltaView view;
  const Bytes plain = delta(table, 0, {}, true);
  CHECK(DeltaView::parse(plain.data(), plain.size(), view).ok() && !view.has_sketch());
  Table serving(config_of(true), {3, 4});
  CHECK(take(serving, counted).ok());
  CHECK(take(serving, plain).ok());
  CHECK(same_contents(delta(serving, 0, {}, true), plain));
  CHECK(take(table, Crafted{.to = 9, .incarnation = 501, .ids = ids_of_chunk(0, 2)}.encode()).ok());
  const Bytes replaced = delta(table, 0);
  CHECK(DeltaView::parse(replaced.data(), replaced.size(), view).ok() && !view.has_sketch());
}

TEST(delta_with_a_sketch_that_cannot_be_is_refused) {
  Random random{33};
  Sketch small(kSketchBytes);
  meet(small, random, 60, 1);
  Sketch large(kSketchBytes * 2);
  meet(large, random, 1600, 1);
  CHECK(large.num_slots() == large.slots_max());
  Table table(config_of(), {1, 2});
  TableConfig uncounted = config_of();
  uncounted.admission = {};
  Table none(uncounted, {1, 2});
  const std::string before = digest(table);
  CHECK(take(table, Crafted{.sketch = &large}.encode()).code == Code::kCorruptDelta);
  CHECK(take(none, Crafted{.sketch = &small}.encode()).code == Code::kCorruptDelta);
  Bytes sound = Crafted{.sketch = &small}.encode();
  DeltaView view;
  CHECK(DeltaView::parse(sound.data(), sound.size(), view).ok());
  DeltaLayout at;
  CHECK(DeltaLayout::of(view.header(), at));
  const struct {
    size_t offset;
    uint32_t value;
  } edits[] = {
      {104, 0},
      {104, 32},
      {104, 100},
      {104, 1u << 31},
      {108, 0},
      {112, 0},
      {112, 61},
      {116, 1},
      {at.sketch_counts, 0},
      {at.sketch_fingerprints, 0xFFFFFFFF},
      {at.sketch_numbers, 0xFFFFFFFF},
      {at.sketch_numbers + 4, 0},
      {at.sketch_masks, 0},
  };
  for (const auto& edit : edits) {
    Bytes bytes = sound;
    CHECK(std::memcmp(bytes.data() + edit.offset, &edit.value, 4) != 0);
    std::memcpy(bytes.data() + edit.offset, &edit.value, 4);
    seal(bytes);
    CHECK(take(table, bytes).code == Code::kCorruptDelta);
    CHECK(digest(table) == before);
  }
  CHECK(take(table, sound).ok());
}

TEST(delta_that_says_an_id_twice_is_refused) {
  const std::vector<uint64_t> ids = ids_of_chunk(0, 200);
  for (const bool full : {true, false}) {
    Table table(config_of(), {1, 2});
    CHECK(take(table, Crafted{.ids = {ids[7]}}.encode()).ok());
    const std::string before = digest(table);
    Crafted twice{.from = full ? 0u : 1u, .to = 2, .ids = ids};
    twice.ids.push_back(ids[3]);
    CHECK(take(table, twice.encode()).code == Code::kCorruptDelta);
    if (!full) {
      twice.ids = {ids[1]};
      twice.removed = {{ids[1], 2, Reason::kErased}};
      CHECK(take(table, twice.encode()).code == Code::kCorruptDelta);
      twice.removed = {{ids[2], 2, Reason::kErased}, {ids[2], 2, Reason::kExpired}};
      CHECK(take(table, twice.encode()).code == Code::kCorruptDelta);
    }
    CHECK(digest(table) == before);
  }
}

TEST(delta_apply_with_a_sketch_changes_nothing_when_memory_runs_out) {
  Random random{34};
  Sketch sketch(kSketchBytes);
  meet(sketch, random, 20, 1);
  const Bytes base = Crafted{.ids = ids_of_chunk(0, 5), .sketch = &sketch}.encode();
  meet(sketch, random, 400, 2);
  const std::vector<Tombstone> removed{{ids_of_chunk(0, 1)[0], 2, Reason::kExpired}};
  const Bytes deltas[] = {
      Crafted{.to = 2, .ids = ids_of_chunk(0, 90), .sketch = &sketch}.encode(),
      Crafted{.from = 1, .to = 2, .ids = ids_of_chunk(0, 90, 50), .removed = removed, .sketch = &sketch}.encode()};
  for (const Bytes& bytes : deltas) {
    long allocations = 0;
    for (bool done = false; !done; ++allocations) {
      Table target(config_of(), {7, 8});
      CHECK(take(target, base).ok());
      const std::string before = digest(target);
      std::thread worker([&] {
        fail_allocations_after(allocations);
        const Status status = take(target, bytes);
        fail_allocations_after(-1);
        CHECK(status.ok() || status.code == Code::kNoMemory);
        done = status.ok();
      });
      worker.join();
      CHECK(done == (digest(target) != before));
      CHECK(allocations < 300);
    }
    CHECK(allocations > 5);
  }
}

TEST(delta_written_while_a_chunk_moves_on_shows_one_instant) {
  Table table(config_of(), {1, 2});
  const std::vector<uint64_t> ids = ids_of_chunk(0, 3000);
  const Bytes base = Crafted{.ids = ids}.encode();
  CHECK(take(table, base).ok() && base.size() > (size_t{64} << 10));
  const std::vector<float> rows(ids.size() * kDim, 1);
  for (const bool insert : {true, false}) {
    for (const Cursor since : {Cursor{}, Cursor{500, 1}}) {
      Bytes bytes;
      int calls = 0;
      // Somebody else writes just when the memory is asked for.
      const auto allocate = [&](size_t size) {
        AssignRequest request;
        request.rows = rows.data();
        request.count = insert ? 1 : ids.size();
        const uint64_t fresh = ids_of_chunk(0, 1, 1'000'000 + 1000 * since.version)[0];
        request.ids = insert ? &fresh : ids.data();
        if (calls++ == 0) CHECK(table.assign(request, {}).ok());
        bytes.assign(size, 0xEE);
        return bytes.data();
      };
      CHECK(table.delta(0, since, false, allocate).ok());
      CHECK(calls <= 2);
      const Bytes now = delta(table, 0, since);
      if (calls == 2) CHECK(bytes == now);
      Table replica(config_of(), {3, 4});
      CHECK(take(replica, base).ok());
      CHECK(take(replica, bytes).ok());
      CHECK(take(replica, delta(table, 0, {500, 1})).ok());
      CHECK(same_contents(delta(replica, 0), delta(table, 0)));
    }
  }
}

TEST(delta_with_a_stream_name_that_is_no_text_is_refused) {
  const Bytes sound = Crafted{}.encode();
  const size_t at = std::find(sound.begin() + DeltaHeader::kBytes, sound.end(), 'c') - sound.begin();
  CHECK(std::memcmp(sound.data() + at, "client/1", 8) == 0);
  const struct {
    const char* name;
    bool text;
  } cases[] = {
      {"client/2", true},
      {"zz\xC3\xA9zzzz", true},
      {"zz\xE2\x82\xACzzz", true},
      {"zz\xF4\x8F\xBF\xBFzz", true},
      {"zzzzz\x80zz", false},
      {"zzzzz\xC3zz", false},
      {"zzzzzzz\xC3", false},
      {"zz\xC0\xAFzzzz", false},
      {"zz\xE0\x80\xAFzzz", false},
      {"zz\xED\xA0\x80zzz", false},
      {"zz\xF4\x90\x80\x80zz", false},
      {"zz\xF5\x80\x80\x80zz", false},
      {"zzzzz\xF0\x9F\x98", false},
  };
  for (const auto& each : cases) {
    CHECK(std::strlen(each.name) == 8);
    Bytes bytes = sound;
    std::memcpy(bytes.data() + at, each.name, 8);
    seal(bytes);
    Table table(config_of(), {1, 2});
    CHECK(take(table, bytes).code == (each.text ? Code::kOk : Code::kCorruptDelta));
  }
}
