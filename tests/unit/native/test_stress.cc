// Many threads do everything to one table at once. Under the thread sanitizer these are the tests that matter.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "native/table.h"

using namespace embedstore;
using embedstore::test::Random;

namespace {

constexpr uint32_t kDim = 4;
constexpr uint32_t kChunks = 32;
constexpr uint64_t kIds = 3000;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRounds = 2000;
constexpr int kTurns = 250;
#else
constexpr int kRounds = 8000;
constexpr int kTurns = 5000;
#endif

TableConfig config_of() {
  TableConfig config;
  config.num_chunks = kChunks;
  config.chunk_end = kChunks;
  config.dim = kDim;
  config.optimizer.kind = Optimizer::Kind::kSgd;
  config.lr = 1;
  config.tombstones_max = 64;
  return config;
}

std::vector<uint64_t> incarnations_from(uint64_t first) {
  std::vector<uint64_t> numbers(kChunks);
  for (uint64_t& number : numbers) number = first++;
  return numbers;
}

Status push(Table& table, const std::vector<uint64_t>& ids, float gradient, int64_t time_ms,
            const std::vector<Origin>& origins = {}, const uint32_t* counts = nullptr) {
  const std::vector<float> gradients(ids.size() * kDim, gradient);
  PushRequest request;
  request.ids = ids.data();
  request.gradients = gradients.data();
  request.count = ids.size();
  request.counts = counts;
  request.event_time_ms = time_ms;
  request.now_ms = int64_t{1} << 40;
  return table.push(request, origins);
}

// Brings what changed in a chunk since the follower was there. Somebody else may have brought more meanwhile, and a
// branch of a branch may lie between: then it is refused.
bool follow(const Table& leader, Table& follower, uint32_t chunk) {
  std::vector<ChunkState> states;
  follower.states(states);
  std::vector<uint8_t> bytes;
  const auto allocate = [&bytes](size_t count) {
    bytes.resize(count);
    return bytes.data();
  };
  CHECK(leader.delta(chunk, {states[chunk].incarnation, states[chunk].version}, false, allocate).ok());
  uint32_t applied = 0;
  Cursor now;
  const Status status = follower.apply(bytes.data(), bytes.size(), applied, now);
  CHECK(status.ok() || status.code == Code::kDeltaGap);
  return status.ok();
}

struct Row {
  uint32_t updates;
  int64_t first_seen_s;
  int64_t last_seen_s;
  std::array<float, kDim> embedding;
  bool operator==(const Row&) const = default;
};

// All rows, each of which has its id alone.
std::map<uint64_t, Row> rows_of(const Table& table) {
  std::map<uint64_t, Row> rows;
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
    ScannedChunk scanned;
    CHECK(table.scan(chunk, scanned).ok());
    for (size_t i = 0; i < scanned.ids.size(); ++i) {
      Row row{scanned.updates[i], scanned.first_seen_s[i], scanned.last_seen_s[i], {}};
      std::copy_n(scanned.embeddings.begin() + static_cast<ptrdiff_t>(i * kDim), kDim, row.embedding.begin());
      CHECK(chunk_of(mix64(scanned.ids[i]), log2_of(kChunks)) == chunk);
      CHECK(rows.emplace(scanned.ids[i], row).second);
    }
  }
  CHECK(rows.size() == table.size());
  return rows;
}

// What the sketches hold, in the bytes of full deltas.
std::vector<uint8_t> sketches_of(const Table& table) {
  std::vector<uint8_t> all;
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
    std::vector<uint8_t> bytes;
    CHECK(table
              .delta(chunk, {}, false,
                     [&bytes](size_t count) {
                       bytes.resize(count);
                       return bytes.data();
                     })
              .ok());
    DeltaView view;
    DeltaLayout at;
    CHECK(DeltaView::parse(bytes.data(), bytes.size(), view).ok() && DeltaLayout::of(view.header(), at));
    all.push_back(static_cast<uint8_t>(view.header().sketch_halvings));
    all.insert(all.end(), bytes.begin() + static_cast<ptrdiff_t>(at.sketch_masks), bytes.end() - 4);
  }
  return all;
}

void run_all(const std::vector<std::function<void()>>& bodies) {
  std::vector<std::thread> threads;
  for (const auto& body : bodies) threads.emplace_back(body);
  for (std::thread& thread : threads) thread.join();
}

std::vector<uint64_t> some_ids(Random& random, uint64_t from, uint64_t below) {
  std::vector<uint64_t> ids(1 + random.below(random.below(8) == 0 ? 1200 : 40));
  for (uint64_t& id : ids) id = from + random.below(below);
  return ids;
}

// One thread of the storm. The ids that are in use move on with the rounds, as the clock does, so that rows expire.
struct Stormer {
  Table& leader;
  Table& follower;
  std::atomic<uint64_t>& next_incarnation;
  int number;
  Random random{static_cast<uint64_t>(number) + 77};
  int64_t position = 0;

  void run() {
    for (int round = 0; round < kRounds; ++round) {
      const auto ids = some_ids(random, static_cast<uint64_t>(round) * 3, kIds);
      const int64_t time_ms = 1'000 + round * 50 - static_cast<int64_t>(random.below(400));
      write(ids, std::max<int64_t>(time_ms, 0));
      read(ids);
      if (number == 0) disturb();
      if (number % 2 == 0) follow(leader, follower, static_cast<uint32_t>(random.below(kChunks)));
    }
  }

  void write(const std::vector<uint64_t>& ids, int64_t time_ms) {
    const uint64_t what = random.below(8);
    if (what < 3) {
      std::vector<uint32_t> counts(ids.size());
      for (uint32_t& count : counts) count = static_cast<uint32_t>(random.below(4));
      CHECK(push(leader, ids, -1, time_ms, {}, counts.data()).ok());
    } else if (what < 5) {
      const std::vector<Origin> origins = {{"s" + std::to_string(number), position, position + 1}};
      CHECK(push(leader, ids, -1, time_ms, origins).ok());
      CHECK(push(leader, ids, -1, time_ms, origins).ok());  // a repeat
      ++position;
    } else if (what == 5) {
      const std::vector<float> rows(ids.size() * kDim, 0.5f);
      CHECK(leader.assign({ids.data(), rows.data(), ids.size(), time_ms, int64_t{1} << 40}, {}).ok());
    } else if (what == 6) {
      uint64_t removed = 0;
      CHECK(leader.erase(ids.data(), ids.size() / 4, Reason::kErased, {}, removed).ok() && removed <= ids.size());
    } else {
      SweepResult swept;
      CHECK(leader.sweep(random.below(3000), random.below(8) == 0, swept).ok());
    }
  }

  void read(const std::vector<uint64_t>& ids) {
    std::vector<float> rows(ids.size() * kDim);
    std::vector<uint8_t> found(ids.size());
    PullTarget target;
    target.rows = rows.data();
    target.found = found.data();
    CHECK(leader.pull(ids.data(), ids.size(), target).ok());
    for (size_t i = 0; i < ids.size(); ++i) {
      // Every write changes all numbers of a row alike: a row that differs within itself was read half written.
      for (uint32_t d = 1; d < kDim; ++d) CHECK(rows[i * kDim + d] == rows[i * kDim]);
      CHECK(found[i] != 0 || rows[i * kDim] == 0);
    }
    CHECK(follower.peek(ids.data(), ids.size(), {.found = found.data()}).ok());
  }

  void disturb() {
    const uint64_t what = random.below(6);
    if (what == 0) leader.set_limits({random.below(2) == 0 ? 3'000 : -1, 4 + static_cast<uint32_t>(random.below(80))});
    if (what == 1) CHECK(leader.branch(incarnations_from(next_incarnation.fetch_add(kChunks))).ok());
    if (what == 2) CHECK(leader.counters().changes.pushed > 0 || leader.memory_bytes() > 0);
    if (what == 3) leader.set_lr(1);
    Table::DistinctWatermarks marks;
    if (what == 4) CHECK(leader.watermarks(marks).ok() && !marks.empty());
    if (what == 5) CHECK(leader.raise_all({{"t", 5}}, true).ok() && leader.forget_stream("t").ok());
  }
};

}  // namespace

TEST(threads_that_do_everything_leave_a_table_whole) {
  constexpr int kThreads = 5;
  TableConfig config = config_of();
  config.admission.kind = Admission::Kind::kMinCount;
  config.admission.min_count = 3;
  config.admission.memory_bytes = kChunks * 1024;
  config.limits = {3'000, 40};
  Table leader(config, incarnations_from(1));
  config.limits = {};
  Table follower(config, incarnations_from(1'000));
  CHECK(leader.raise_all({{"s0", 0}, {"s1", 0}, {"s2", 0}, {"s3", 0}, {"s4", 0}}, true).ok());
  std::atomic<uint64_t> next_incarnation{10'000};
  std::vector<Stormer> stormers;
  for (int t = 0; t < kThreads; ++t) stormers.push_back({leader, follower, next_incarnation, t});
  std::vector<std::function<void()>> bodies;
  for (Stormer& stormer : stormers) bodies.push_back([&stormer] { stormer.run(); });
  run_all(bodies);

  leader.set_limits({});
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) CHECK(follow(leader, follower, chunk));
  const auto rows = rows_of(leader);
  CHECK(!rows.empty() && rows == rows_of(follower));
  CHECK(sketches_of(leader) == sketches_of(follower));
  Table::DistinctWatermarks marks;
  CHECK(leader.watermarks(marks).ok());
  for (const auto& [set, chunks] : marks)
    for (int t = 0; t < kThreads; ++t)
      CHECK(set->position("s" + std::to_string(t)) == stormers[static_cast<size_t>(t)].position);
  const Changes changes = leader.counters().changes;
  CHECK(changes.expired > 0 && changes.evicted > 0 && changes.dropped > 0);

  // Long after that, everything but what has just been seen goes, and its memory too.
  std::vector<uint64_t> recent(10'000);
  for (size_t i = 0; i < recent.size(); ++i) recent[i] = (uint64_t{1} << 32) + i;
  const std::vector<uint32_t> thrice(recent.size(), 3);
  constexpr int64_t kLaterMs = int64_t{1} << 39;
  CHECK(push(leader, recent, -1, kLaterMs, {}, thrice.data()).ok() && leader.size() >= recent.size());
  leader.set_limits({3'000, kNoRow});
  const std::vector<float> zeros(kDim);
  CHECK(leader.assign({recent.data(), zeros.data(), 1, kLaterMs + 5'000, kLaterMs}, {}).ok());
  const uint64_t before = leader.memory_bytes();
  // The round that the storm left half done, and a whole one.
  for (int round = 0; round < 2;) {
    SweepResult swept;
    CHECK(leader.sweep(1 << 20, false, swept).ok());
    round += swept.complete;
  }
  CHECK(leader.size() == 1 && leader.memory_bytes() < before);
  for (uint32_t chunk = 0; chunk < kChunks; ++chunk) CHECK(follow(leader, follower, chunk));
  CHECK(rows_of(follower).size() == 1);
}

TEST(threads_lose_no_update_while_rows_are_moved) {
  Table table(config_of(), incarnations_from(1));
  constexpr int kPushers = 3;
  std::vector<uint64_t> counted(2500);
  for (size_t i = 0; i < counted.size(); ++i) counted[i] = i * 7;
  std::atomic<int> pushing{kPushers};
  std::vector<std::function<void()>> bodies;
  for (int t = 0; t < kPushers; ++t)
    bodies.push_back([&] {
      for (int round = 0; round < kRounds / 5; ++round) CHECK(push(table, counted, -1, 0).ok());
      --pushing;
    });
  // Rows that come and go between the counted ones, so that sweeps find something to move.
  for (uint64_t churner = 1; churner < 3; ++churner)
    bodies.push_back([&table, &pushing, churner] {
      Random random{churner};
      while (pushing.load() != 0) {
        std::vector<uint64_t> ids(4000);
        for (uint64_t& id : ids) id = random.next() | uint64_t{1} << 63;
        CHECK(push(table, ids, -1, 0).ok());
        uint64_t removed = 0;
        CHECK(table.erase(ids.data(), ids.size(), Reason::kErased, {}, removed).ok() && removed == ids.size());
        SweepResult swept;
        CHECK(table.sweep(20'000, false, swept).ok());
      }
    });
  bodies.push_back([&] {
    std::map<uint64_t, float> last;
    while (pushing.load() != 0) {
      for (uint32_t chunk = 0; chunk < kChunks; ++chunk) {
        ScannedChunk scanned;
        CHECK(table.scan(chunk, scanned).ok());
        for (size_t i = 0; i < scanned.ids.size(); ++i) {
          if (scanned.ids[i] >> 63 != 0) continue;
          const float value = scanned.embeddings[i * kDim];
          CHECK(value == static_cast<float>(scanned.updates[i]) && value >= last[scanned.ids[i]]);
          last[scanned.ids[i]] = value;
        }
      }
    }
  });
  run_all(bodies);
  const auto rows = rows_of(table);
  CHECK(rows.size() == counted.size());
  for (const uint64_t id : counted) CHECK(rows.at(id).embedding[0] == static_cast<float>(kPushers * (kRounds / 5)));
}

// With 4 threads that only pull from it, or only push to it, a chunk still serves the one that does the other.
TEST(threads_that_pull_or_push_without_end_do_not_starve_the_others) {
  TableConfig config = config_of();
  config.num_chunks = config.chunk_end = 1;
  std::vector<uint64_t> ids(2000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  for (const bool many_pull : {true, false}) {
    Table table(config, {1});
    CHECK(push(table, ids, 0, 0).ok());
    std::atomic<int> many{4};
    std::atomic<int> few_done{0};
    const auto step = [&](bool pulls) {
      std::vector<float> rows(ids.size() * kDim);
      PullTarget target;
      target.rows = rows.data();
      CHECK(pulls ? table.pull(ids.data(), ids.size(), target).ok() : push(table, ids, 0, 0).ok());
    };
    std::vector<std::function<void()>> bodies;
    for (int t = 0; t < 4; ++t)
      bodies.push_back([&] {
        for (int turn = 0; turn < kTurns; ++turn) step(many_pull);
        --many;
      });
    bodies.push_back([&] {
      for (; many.load() == 4; ++few_done) step(!many_pull);
    });
    run_all(bodies);
    CHECK(few_done.load() * 200 > 4 * kTurns);
  }
}
