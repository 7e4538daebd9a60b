// Numbers at the ends of their ranges, and memory that runs out anywhere.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "crafted.h"

using namespace embedstore;
using namespace embedstore::test;

namespace {

constexpr int64_t kTimeMax = std::numeric_limits<int64_t>::max();

Status push(Table& table, const std::vector<uint64_t>& ids, int64_t time_ms, const std::vector<Origin>& origins = {},
            const std::vector<uint32_t>& counts = {}) {
  const std::vector<float> gradients(ids.size() * table.config().dim, -1);
  PushRequest request;
  request.ids = ids.data();
  request.gradients = gradients.data();
  request.count = ids.size();
  request.counts = counts.empty() ? nullptr : counts.data();
  request.event_time_ms = time_ms;
  request.now_ms = time_ms;
  return table.push(request, origins);
}

TableConfig plain(uint32_t num_chunks = 1, uint32_t dim = 2) {
  TableConfig config;
  config.num_chunks = config.chunk_end = num_chunks;
  config.dim = dim;
  config.optimizer.kind = Optimizer::Kind::kAdam;
  config.optimizer.eps = 1e-8f;
  config.lr = 1;
  return config;
}

Table make(const TableConfig& config, uint64_t incarnation = 100) {
  return Table(config, std::vector<uint64_t>(config.num_chunks, incarnation));
}

std::vector<uint64_t> first_ids(size_t count, uint64_t from = 0) {
  std::vector<uint64_t> ids(count);
  for (size_t i = 0; i < count; ++i) ids[i] = from + i;
  return ids;
}

void sweep_round(Table& table) {
  SweepResult swept;
  do {
    CHECK(table.sweep(10'000, false, swept).ok());
  } while (!swept.complete);
}

// What a table says of each id and removal since a version, wherever the rows lie, and its sketches.
std::map<std::string, std::string> said(const Table& table, uint64_t since) {
  std::map<std::string, std::string> all;
  for (uint32_t c = 0; c < table.num_owned(); ++c) {
    const Bytes bytes = delta(table, c, {100, since});
    DeltaView view;
    DeltaLayout at;
    CHECK(DeltaView::parse(bytes.data(), bytes.size(), view).ok() && DeltaLayout::of(view.header(), at));
    const auto text = [](const auto* p, size_t n) { return std::string(reinterpret_cast<const char*>(p), n); };
    for (size_t i = 0; i < view.header().num_rows; ++i)
      CHECK(all.emplace("row " + std::to_string(view.id(i)), text(view.embedding(i), 4 * view.header().dim) +
                                                                 text(view.state(i), 4 * view.header().state_floats) +
                                                                 std::to_string(view.updates(i)) + " " +
                                                                 std::to_string(view.last_seen_s(i)))
                .second);
    for (size_t i = 0; i < view.header().num_tombstones; ++i) {
      const Tombstone removed = view.tombstone(i);
      CHECK(all.emplace("row " + std::to_string(removed.id), std::to_string(static_cast<int>(removed.reason))).second);
    }
    all["sketch " + std::to_string(c)] = text(bytes.data() + at.sketch_masks, bytes.size() - 4 - at.sketch_masks);
  }
  return all;
}

}  // namespace

TEST(memory_that_runs_out_in_a_write_or_a_sweep_leaves_it_to_be_repeated) {
  TableConfig config = config_of();
  config.admission.min_count = 2;
  config.limits = {10'000, 60};
  const std::vector<uint64_t> old = first_ids(50), kept = first_ids(70, 50), fresh = first_ids(200, 120);
  std::vector<uint64_t> batch = old;
  batch.resize(25);
  for (const auto* more : {&kept, &fresh, &fresh}) batch.insert(batch.end(), more->begin(), more->end() - 30);
  const std::vector<Origin> origins = {{"s", 0, 1}};
  const std::vector<float> values(batch.size() * kDim, 0.5f);
  for (int operation = 0; operation < 4; ++operation) {
    const auto run = [&](Table& table) -> Status {
      if (operation == 0) {
        PushRequest request;
        request.ids = batch.data();
        request.gradients = values.data();
        request.count = batch.size();
        request.event_time_ms = request.now_ms = 25'000;
        return table.push(request, origins);
      }
      if (operation == 1) return table.assign({batch.data(), values.data(), batch.size(), 25'000, 25'000}, origins);
      uint64_t removed = 0;
      if (operation == 2) return table.erase(batch.data(), batch.size(), Reason::kErased, origins, removed);
      for (SweepResult swept; !swept.complete;)
        if (Status s = table.sweep(1'000, false, swept); !s.ok()) return s;
      return {};
    };
    const auto prepare = [&](Table& table) {
      CHECK(table.raise_all({{"s", 0}}, true).ok());
      CHECK(table.assign({old.data(), values.data(), old.size(), 1'000, 1'000}, {}).ok());
      CHECK(table.assign({kept.data(), values.data(), kept.size(), 15'000, 15'000}, {}).ok());
      CHECK(push(table, {400, 401, 402}, 15'000).ok());
      if (operation == 3) table.set_limits({10'000, 20});
    };
    Table whole = make(config);
    prepare(whole);
    CHECK(run(whole).ok());
    const auto wanted = said(whole, 1);
    long allocations = 0;
    for (bool done = false; !done; ++allocations) {
      Table table = make(config);
      prepare(table);
      const Bytes before[] = {delta(table, 0), delta(table, 1)};
      std::thread worker([&] {
        fail_allocations_after(allocations);
        const Status status = run(table);
        fail_allocations_after(-1);
        CHECK(status.ok() || status.code == Code::kNoMemory);
        done = status.ok();
      });
      worker.join();
      Table::DistinctWatermarks marks;
      CHECK(table.watermarks(marks).ok());
      for (const auto& [set, chunks] : marks)
        for (const uint32_t c : chunks)
          CHECK(operation == 3 || (set->position("s") == 0) == (delta(table, c) == before[c]));
      CHECK(run(table).ok());
      CHECK(said(table, 1) == wanted);
      CHECK(allocations < 400);
    }
    CHECK(allocations > 3);
  }
}

TEST(a_push_that_only_evicts_moves_the_version) {
  TableConfig config = plain();
  config.admission.kind = Admission::Kind::kMinCount;
  config.admission.min_count = 5;
  Table table = make(config);
  const std::vector<uint64_t> ids = first_ids(40);
  CHECK(push(table, ids, 1'000, {}, std::vector<uint32_t>(40, 5)).ok() && table.size() == 40);
  std::vector<ChunkState> before, after;
  table.states(before);
  table.set_limits({-1, 10});
  CHECK(push(table, {1'000}, 1'000, {}, {0}).ok() && table.size() <= 10);
  table.states(after);
  CHECK(after[0].version == before[0].version + 1);
  const Bytes bytes = delta(table, 0, {100, before[0].version});
  DeltaView view;
  CHECK(DeltaView::parse(bytes.data(), bytes.size(), view).ok());
  CHECK(view.header().num_tombstones == 40 - table.size());
}

TEST(a_sweep_and_a_push_that_expire_and_evict_much_at_once_find_room_for_it) {
  for (const size_t tombstones_max : {size_t{0}, size_t{1}, size_t{8192}}) {
    TableConfig config = plain();
    config.tombstones_max = tombstones_max;
    Table table = make(config);
    CHECK(push(table, first_ids(3'000), 1'000).ok() && push(table, first_ids(3'000, 5'000), 90'000).ok());
    table.set_limits({10'000, 16});
    sweep_round(table);
    CHECK(table.size() == 15 && table.counters().changes.expired + table.counters().changes.evicted == 5'985);
    CHECK(table.counters().tombstones <= tombstones_max);
    // A batch far above the capacity, whose ids come back again and again.
    for (int round = 0; round < 5; ++round) CHECK(push(table, first_ids(20'000), 95'000 + round).ok());
    CHECK(table.size() == 15 && table.counters().tombstones <= tombstones_max);
    table.set_limits({-1, 1});
    CHECK(push(table, first_ids(3), 95'010).ok() && table.size() == 1);
  }
}

TEST(times_at_the_end_of_their_range_expire_nothing_early) {
  for (const int64_t ttl_ms : {int64_t{0}, int64_t{1'000}, kTimeMax - 1, kTimeMax}) {
    TableConfig config = plain(4);
    config.limits.ttl_ms = ttl_ms;
    Table table = make(config);
    // Descending times: the clock stays with the largest.
    for (const int64_t time_ms : {kTimeMax, kTimeMax - 1, kTimeMax - 100'000, kTimeMax / 2, int64_t{0}}) {
      CHECK(push(table, first_ids(50), time_ms).ok());
      CHECK(table.size() == 50);
    }
    std::vector<ChunkState> states;
    table.states(states);
    for (const ChunkState& state : states) CHECK(state.clock_ms == kTimeMax);
    sweep_round(table);
    CHECK(table.size() == 50 && table.counters().changes.expired == 0);
    CHECK(push(table, {77}, -2).code == Code::kInvalidArgument);
  }
}

TEST(counts_at_the_end_of_their_range_saturate) {
  TableConfig config = plain();
  config.admission.kind = Admission::Kind::kMinCount;
  config.admission.min_count = 0xFFFFFFFF;
  Table table = make(config);
  CHECK(push(table, {1, 2, 2}, 0, {}, {0xFFFFFFFE, 0x7FFFFFFF, 0x7FFFFFFF}).ok() && table.size() == 0);
  CHECK(push(table, {1}, 0, {}, {0}).ok() && table.size() == 0);
  CHECK(push(table, {1, 2, 3, 3}, 0, {}, {1, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}).ok() && table.size() == 3);
}

TEST(tables_of_every_shape_hold_their_rows) {
  const struct {
    uint32_t num_chunks, dim;
    size_t rows;
  } shapes[] = {{1, 1, 3'000}, {1, 4096, 40}, {65536, 1, 3'000}, {65536, 4096, 20}};
  for (const auto& shape : shapes) {
    Table table = make(plain(shape.num_chunks, shape.dim));
    std::vector<uint64_t> ids = first_ids(shape.rows);
    ids.back() = ~uint64_t{0};
    CHECK(push(table, ids, 5).ok() && table.size() == ids.size());
    std::vector<float> rows(ids.size() * shape.dim);
    PullTarget target;
    target.rows = rows.data();
    CHECK(table.pull(ids.data(), ids.size(), target).ok());
    for (const float value : rows) CHECK(value == rows[0] && value > 0);
    uint64_t removed = 0;
    CHECK(table.erase(ids.data(), ids.size(), Reason::kErased, {}, removed).ok() && removed == ids.size());
    sweep_round(table);
    CHECK(table.size() == 0);
  }
}

TEST(a_chunk_at_its_last_version_refuses_writes_by_name) {
  Table table(config_of(), {1, 2});
  CHECK(take(table, Crafted{.to = kVersionMax - 1, .ids = ids_of_chunk(0, 300)}.encode()).ok());
  const std::vector<uint64_t> ids = ids_of_chunk(0, 300);
  uint64_t removed = 0;
  CHECK(table.erase(ids.data(), 100, Reason::kErased, {}, removed).ok() && removed == 100);
  const auto before = said(table, 0);
  const std::vector<float> zeros(ids.size() * kDim);
  CHECK(table.erase(ids.data(), 200, Reason::kErased, {}, removed).code == Code::kInvalidArgument && removed == 0);
  CHECK(push(table, ids, 9'000).code == Code::kInvalidArgument);
  CHECK(table.assign({ids.data(), zeros.data(), ids.size(), 0, 0}, {}).code == Code::kInvalidArgument);
  table.set_limits({1, 10});
  sweep_round(table);
  CHECK(said(table, 0) == before);
  Table follower(config_of(), {3, 4});
  CHECK(take(follower, delta(table, 0)).ok() && said(follower, 0) == before);
}
