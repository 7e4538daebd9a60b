#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "native/table.h"

using namespace embedstore;
using embedstore::test::fail_allocations_after;
using embedstore::test::Random;

namespace {

constexpr uint32_t kDim = 4;

TableConfig config_of(Optimizer optimizer, uint32_t num_chunks = 4) {
  TableConfig config;
  config.num_chunks = num_chunks;
  config.chunk_end = num_chunks;
  config.dim = kDim;
  config.optimizer = optimizer;
  config.lr = 1.0f;
  return config;
}

std::vector<uint64_t> incarnations(uint32_t count) {
  std::vector<uint64_t> numbers(count);
  for (uint32_t i = 0; i < count; ++i) numbers[i] = 100 + i;
  return numbers;
}

const Optimizer kSgd{Optimizer::Kind::kSgd, 0, 0, 0, 0};
const Optimizer kAdagrad{Optimizer::Kind::kAdagrad, 0.1f, 1e-8f, 0, 0};

Status push(Table& table, const std::vector<uint64_t>& ids, float gradient, const std::vector<Origin>& origins = {}) {
  const std::vector<float> gradients(ids.size() * kDim, gradient);
  PushRequest request;
  request.ids = ids.data();
  request.gradients = gradients.data();
  request.count = ids.size();
  return table.push(request, origins);
}

std::vector<float> pull(const Table& table, const std::vector<uint64_t>& ids) {
  std::vector<float> rows(ids.size() * kDim, -1);
  PullTarget target;
  target.rows = rows.data();
  CHECK(table.pull(ids.data(), ids.size(), target).ok());
  return rows;
}

std::vector<uint8_t> delta(const Table& table, uint32_t chunk, Cursor since = {}) {
  std::vector<uint8_t> bytes;
  const auto allocate = [&bytes](size_t count) {
    bytes.assign(count, 0xEE);
    return bytes.data();
  };
  CHECK(table.delta(chunk, since, false, allocate).ok());
  return bytes;
}

// Everything that can be seen of a table.
std::string digest(const Table& table) {
  std::string all;
  for (uint32_t chunk = 0; chunk < table.num_owned(); ++chunk) {
    const auto bytes = delta(table, chunk);
    all.append(bytes.begin(), bytes.end());
  }
  return all;
}

}  // namespace

TEST(table_writes_are_all_or_nothing_in_every_chunk_when_memory_runs_out) {
  Random random{21};
  std::vector<uint64_t> ids(300);
  for (auto& id : ids) id = random.below(400);
  for (int operation = 0; operation < 3; ++operation) {
    long allocations = 0;
    for (bool done = false; !done; ++allocations) {
      Table table(config_of(kAdagrad, 1), incarnations(1));
      CHECK(push(table, {1, 2, 3, 4, 5}, 1).ok());
      const std::string before = digest(table);
      // The scratch memory of this thread outlives a call, so that every count fails somewhere else.
      std::thread worker([&] {
        const std::vector<float> values(ids.size() * kDim, 0.5f);
        const std::vector<Origin> origins;
        AssignRequest assign{ids.data(), values.data(), ids.size(), 5, 5};
        uint64_t removed = 0;
        PushRequest request;
        request.ids = ids.data();
        request.gradients = values.data();
        request.count = ids.size();
        fail_allocations_after(allocations);
        const Status status = operation == 0   ? table.push(request, origins)
                              : operation == 1 ? table.assign(assign, origins)
                                               : table.erase(ids.data(), ids.size(), Reason::kErased, origins, removed);
        fail_allocations_after(-1);
        CHECK(status.ok() || status.code == Code::kNoMemory);
        done = status.ok();
      });
      worker.join();
      CHECK(done == (digest(table) != before));
      CHECK(allocations < 200);
    }
    CHECK(allocations > 3);
  }
}

TEST(apply_changes_nothing_when_memory_runs_out) {
  Table source(config_of(kAdagrad, 1), incarnations(1));
  CHECK(push(source, {1, 2, 3}, 1).ok());
  const auto base = delta(source, 0);
  std::vector<uint64_t> ids(100);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  CHECK(push(source, ids, 2).ok());
  uint64_t removed = 0;
  CHECK(source.erase(ids.data(), 2, Reason::kExpired, {}, removed).ok() && removed == 2);
  const std::vector<uint8_t> deltas[] = {delta(source, 0), delta(source, 0, {100, 1})};
  for (const auto& bytes : deltas) {
    long allocations = 0;
    for (bool done = false; !done; ++allocations) {
      Table target(config_of(kAdagrad, 1), {7});
      uint32_t chunk = 0;
      Cursor now;
      CHECK(target.apply(base.data(), base.size(), chunk, now).ok());
      const std::string before = digest(target);
      std::thread worker([&] {
        fail_allocations_after(allocations);
        const Status status = target.apply(bytes.data(), bytes.size(), chunk, now);
        fail_allocations_after(-1);
        CHECK(status.ok() || status.code == Code::kNoMemory);
        done = status.ok();
      });
      worker.join();
      CHECK(digest(target) == (done ? digest(source) : before) || done);
      CHECK(allocations < 200);
    }
    CHECK(allocations > 3);
  }
}

TEST(a_push_that_some_chunks_have_already_goes_to_the_right_rows_of_all_others) {
  constexpr uint32_t kChunks = 8;
  std::vector<uint64_t> ids(400);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  for (uint32_t behind = 1; behind < (1u << kChunks); ++behind) {  // which chunks lack the second push
    Table table(config_of(kSgd, kChunks), incarnations(kChunks));
    CHECK(table.raise_all({{"s", 0}}, true).ok());
    CHECK(push(table, {ids.begin(), ids.begin() + 200}, -1, {{"s", 0, 1}}).ok());
    for (uint32_t c = 0; c < kChunks; ++c)
      if ((behind >> c & 1) == 0) CHECK(table.raise_one(c, {{"s", 2}}, 0).ok());
    CHECK(push(table, ids, -1, {{"s", 1, 2}}).ok());
    size_t num_rows = 0;
    for (uint32_t c = 0; c < kChunks; ++c) {
      ScannedChunk rows;
      CHECK(table.scan(c, rows).ok());
      num_rows += rows.ids.size();
    }
    const std::vector<float> rows = pull(table, ids);
    size_t expected_rows = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const float first = i < 200 ? 1 : 0;
      const float second = (behind >> chunk_of(mix64(ids[i]), 3) & 1) != 0 ? 1 : 0;
      CHECK(rows[i * kDim] == first + second);
      expected_rows += first + second > 0;
    }
    CHECK(num_rows == expected_rows);
  }
}

TEST(threads_that_push_and_pull_lose_no_update) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 60;
  Table table(config_of(kSgd, 8), incarnations(8));
  const Status opened = table.raise_all({{"s0", 0}, {"s1", 0}, {"s2", 0}, {"s3", 0}}, true);
  CHECK(opened.ok());
  std::vector<uint64_t> ids(500);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i % 400;  // 100 of them twice
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const std::string stream = "s" + std::to_string(t);
      for (int round = 0; round < kRounds; ++round) {
        const std::vector<Origin> origins = {{stream, round, round + 1}};
        CHECK(push(table, ids, -1, origins).ok());
        CHECK(push(table, ids, -1, origins).ok());  // a repeat
      }
    });
  }
  threads.emplace_back([&] {
    Table replica(config_of(kSgd, 8), {1, 2, 3, 4, 5, 6, 7, 8});
    while (!stop.load()) {
      for (const float value : pull(table, ids)) CHECK(value >= 0 && value == std::floor(value));
      std::vector<ChunkState> states;
      replica.states(states);
      for (uint32_t c = 0; c < 8; ++c) {
        const auto bytes = delta(table, c, {states[c].incarnation, states[c].version});
        uint32_t chunk = 0;
        Cursor now;
        CHECK(replica.apply(bytes.data(), bytes.size(), chunk, now).ok());
        // The watermarks that came along count exactly the pushes in the rows.
        Table::DistinctWatermarks marks;
        CHECK(replica.watermarks(marks).ok());
        ScannedChunk rows;
        CHECK(replica.scan(c, rows).ok());
        for (const auto& [set, chunks] : marks) {
          for (const uint32_t number : chunks) {
            if (number != c) continue;
            int64_t pushes = 0;
            for (const auto& [stream, position] : set->list()) pushes += position;
            for (size_t i = 0; i < rows.ids.size(); ++i)
              CHECK(rows.embeddings[i * kDim] == static_cast<float>(pushes * (rows.ids[i] < 100 ? 2 : 1)));
          }
        }
      }
    }
  });
  for (int t = 0; t < kThreads; ++t) threads[static_cast<size_t>(t)].join();
  stop.store(true);
  threads.back().join();
  const std::vector<float> rows = pull(table, ids);
  for (size_t i = 0; i < ids.size(); ++i)
    CHECK(rows[i * kDim] == static_cast<float>(kThreads * kRounds * (ids[i] < 100 ? 2 : 1)));
}

TEST(an_empty_table_costs_less_than_a_mebibyte) {
  TableConfig config = config_of(kAdagrad, 256);
  config.dim = 64;
  Table table(config, incarnations(256));
  CHECK(table.memory_bytes() < (1 << 20) / 4);
}

TEST(optimizer_kernels_agree_in_every_length) {
  // Lengths around every vector width: the tail of a row must be computed like its body.
  Random random{23};
  for (uint32_t dim = 1; dim < 70; ++dim) {
    std::vector<float> g(dim), w(dim), s(dim), w1(1), s1(2);
    for (const auto kind : {Optimizer::Kind::kSgd, Optimizer::Kind::kAdagrad, Optimizer::Kind::kAdam}) {
      const Optimizer optimizer{kind, 0.1f, 1e-6f, 0.9f, 0.99f};
      std::vector<float> state(optimizer.state_floats(dim));
      optimizer.init_state(state.data(), dim);
      for (uint32_t d = 0; d < dim; ++d) {
        g[d] = static_cast<float>(static_cast<int64_t>(random.below(2000)) - 1000) / 700.0f;
        w[d] = g[d] * 0.3f;
      }
      auto whole = w;
      optimizer.apply(whole.data(), state.data(), g.data(), dim, 0.05f, 3);
      for (uint32_t d = 0; d < dim; ++d) {
        w1[0] = w[d];
        optimizer.init_state(s1.data(), 1);
        optimizer.apply(w1.data(), s1.data(), &g[d], 1, 0.05f, 3);
        CHECK(w1[0] == whole[d]);
      }
    }
  }
}

TEST(removals_never_outweigh_the_chunk_that_remembers_them) {
  Table table(config_of(kSgd, 1), incarnations(1));
  std::vector<uint64_t> ids(5000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  CHECK(push(table, ids, 1).ok());
  std::vector<ChunkState> states;
  table.states(states);
  const uint64_t full = table.memory_bytes();
  uint64_t removed = 0;
  CHECK(table.erase(ids.data(), ids.size(), Reason::kErased, {}, removed).ok() && removed == ids.size());
  CHECK(table.counters().tombstones <= 256);
  // Who stood before the removals gets the chunk as it is now: empty, and without removals.
  const std::vector<uint8_t> answer = delta(table, 0, {states[0].incarnation, states[0].version});
  DeltaView view;
  CHECK(DeltaView::parse(answer.data(), answer.size(), view).ok());
  CHECK(view.full() && view.header().num_rows == 0);
  SweepResult swept;
  while (!swept.complete) CHECK(table.sweep(1 << 20, false, swept).ok());
  CHECK(table.memory_bytes() < full / 10);
}
