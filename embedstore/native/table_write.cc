#include <algorithm>
#include <cmath>
#include <functional>
#include <new>
#include <shared_mutex>

#include "native/table.h"

namespace embedstore {
namespace {

Status check_finite(const float* values, size_t count, uint32_t dim, const char* field) {
  if (all_finite(values, count * dim)) return {};
  for (size_t row = 0; row < count; ++row) {
    for (uint32_t d = 0; d < dim; ++d) {
      const float value = values[row * dim + d];
      if (std::isfinite(value)) continue;
      return Status::invalid(field, std::string("must be finite, not ") + (std::isnan(value) ? "NaN" : "infinite") +
                                        " in row " + std::to_string(row) + ", number " + std::to_string(d));
    }
  }
  return {};
}

Status check_origins_sane(const std::vector<Origin>& origins) {
  for (size_t i = 0; i < origins.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (origins[i].stream == origins[j].stream)
        return Status::invalid("origins", "stream '" + origins[i].stream + "' occurs twice");
  return {};
}

}  // namespace

// Locks of the streams of one push, in ascending order so that two pushes cannot wait for each other.
class Table::StreamLocks {
 public:
  StreamLocks(std::array<std::mutex, 16>& all, const std::vector<Origin>& origins) : all_(all) {
    for (const Origin& origin : origins) wanted_ |= 1u << (std::hash<std::string>{}(origin.stream) % all.size());
    for (size_t i = 0; i < all_.size(); ++i)
      if ((wanted_ >> i & 1) != 0) all_[i].lock();
  }
  ~StreamLocks() {
    for (size_t i = 0; i < all_.size(); ++i)
      if ((wanted_ >> i & 1) != 0) all_[i].unlock();
  }
  StreamLocks(const StreamLocks&) = delete;
  StreamLocks& operator=(const StreamLocks&) = delete;

 private:
  std::array<std::mutex, 16>& all_;
  uint32_t wanted_ = 0;
};

Status Table::check_times(const int64_t* each, size_t count, int64_t all, int64_t now_ms) const {
  if (now_ms < 0) return Status::invalid("now_ms", "must not be negative, not " + std::to_string(now_ms));
  if (each == nullptr) {
    if (all < EventTimes::kNone) return Status::invalid("event_time_ms", "must not be negative");
    return {};
  }
  for (size_t i = 0; i < count; ++i)
    if (each[i] < 0)
      return Status::invalid("event_times_ms",
                             "must not be negative, not " + std::to_string(each[i]) + " in row " + std::to_string(i));
  return {};
}

EventTimes Table::limited(const int64_t* each, int64_t all, int64_t now_ms) const noexcept {
  EventTimes times{each, all};
  times.limit_ms =
      now_ms > std::numeric_limits<int64_t>::max() - kFutureToleranceMs ? now_ms : now_ms + kFutureToleranceMs;
  return times;
}

// A stream that any chunk does not know comes before a gap: no replay can mend it.
Status Table::check_origins(const std::vector<Origin>& origins, OriginPlan& plan) const {
  if (origins.empty()) return {};
  Watermarks last;
  bool gap = false;
  for (const auto& chunk : chunks_) {
    {
      const std::shared_lock lock(chunk->mutex);
      if (chunk->watermarks == last) continue;
      last = chunk->watermarks;
    }
    const OriginPlan::Decision decision = plan.meet(last).decision;
    if (decision == OriginPlan::Decision::kUnknownStream)
      return {Code::kUnknownStream, plan.unknown_stream(), "is not open"};
    gap |= decision == OriginPlan::Decision::kGap;
  }
  if (gap) return {Code::kGap, "origins", "do not continue the watermarks"};
  return {};
}

// Chunks under lock whose part of a write is decided but not done.
class Table::WriteWindow {
 public:
  // Locks a chunk and decides what its part of the write is.
  Status enter(Chunk& chunk, const Items& items, OriginPlan& plan) {
    Member member{std::unique_lock(chunk.mutex), &chunk, nullptr};
    const OriginPlan::Entry& entry = plan.meet(chunk.watermarks);
    if (entry.decision == OriginPlan::Decision::kSkip) return {};
    if (entry.decision != OriginPlan::Decision::kApply)
      return {Code::kGap, "origins", "the chunk's watermarks changed meanwhile"};
    if (chunk.version >= kVersionMax && items.count != 0)
      return Status::invalid("table", "has a chunk at the last version that deltas can name");
    member.after = entry.after;
    if (items.count != 0) next_id_ = items.ids + items.count;
    members_.push_back(std::move(member));
    parts_.push_back(chunk.part(items));
    num_items_ += items.count;
    return {};
  }
  // Whether these items lie directly behind those entered last, as a look-up needs them: not when the chunk between
  // them has the write already.
  bool continued_by(const Items& items) const noexcept {
    return items.count == 0 || next_id_ == nullptr || items.ids == next_id_;
  }
  bool full() const noexcept { return num_items_ >= kWindowItems || members_.size() >= kChunksMax; }

  // Does it, chunk after chunk. When memory runs out, the chunks from there on are as they were.
  template <class Change>
  void run(size_t row_bytes, const Values& values, WriteScratch& scratch, Change& change) {
    uint32_t* rows = scratch.rows.sized(num_items_);
    size_t at = 0;
    look_up<1>(std::span<const Part>(parts_), sizeof(RowHeader),
               [&](const Part&, size_t, uint32_t row, const RowHeader*) { rows[at++] = row; });
    RowsAhead ahead(parts_, rows, row_bytes, values);
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (parts_[i].items.count != 0) change(*members_[i].chunk, parts_[i].items, rows, ahead);
      if (members_[i].after != nullptr) members_[i].chunk->watermarks = std::move(members_[i].after);
      rows += parts_[i].items.count;
    }
    clear();
  }
  void clear() noexcept {
    parts_.clear();
    members_.clear();
    num_items_ = 0;
    next_id_ = nullptr;
  }

 private:
  static constexpr size_t kChunksMax = 64;

  struct Member {
    std::unique_lock<FairMutex> lock;
    Chunk* chunk;
    Watermarks after;
  };
  std::vector<Member> members_;
  std::vector<Part> parts_;
  size_t num_items_ = 0;
  const uint64_t* next_id_ = nullptr;
};

// Counts what a write did, also when it ends early.
struct Table::CountAtEnd {
  ~CountAtEnd() { table.count(changes); }
  Table& table;
  const Changes& changes;
};

template <class Change>
Status Table::write(const Partition& partition, const std::vector<Origin>& origins, const Values& values,
                    WriteScratch& scratch, Change change) {
  if (Status s = check_owned(partition); !s.ok()) return s;
  if (Status s = check_origins_sane(origins); !s.ok()) return s;
  const StreamLocks streams(stream_locks_, origins);
  OriginPlan plan(origins);
  if (Status s = check_origins(origins, plan); !s.ok()) return s;

  WriteWindow window;
  auto group = partition.groups().begin();
  const auto groups_end = partition.groups().end();
  // With origins every chunk moves its watermarks, also one without ids.
  const uint32_t end = origins.empty() ? 0 : config_.chunk_end;
  uint32_t number = config_.chunk_begin;
  while (number < end || group != groups_end) {
    if (origins.empty()) number = group->chunk;
    Items items{};
    if (group != groups_end && group->chunk == number) items = partition.items(*group++);
    if (!window.continued_by(items)) window.run(layout_.row_bytes, values, scratch, change);
    if (Status s = window.enter(chunk_at(number++), items, plan); !s.ok()) return s;
    if (window.full()) window.run(layout_.row_bytes, values, scratch, change);
  }
  window.run(layout_.row_bytes, values, scratch, change);
  return {};
}

void Table::count(const Changes& changes) noexcept {
  const std::lock_guard lock(counters_mutex_);
  changes_.pushed += changes.pushed;
  changes_.inserted += changes.inserted;
  changes_.dropped += changes.dropped;
  changes_.expired += changes.expired;
  changes_.evicted += changes.evicted;
  changes_.erased += changes.erased;
}

Status Table::validate_push(const PushRequest& r) const try {
  if (config_.embeddings_only) return Status::invalid("table", "holds embeddings only and takes no gradients");
  if (r.lr >= 0 && !std::isfinite(r.lr)) return Status::invalid("lr", "must be finite");
  if (Status s = check_times(r.event_times_ms, r.count, r.event_time_ms, r.now_ms); !s.ok()) return s;
  if (Status s = check_finite(r.gradients, r.count, config_.dim, "grads"); !s.ok()) return s;
  for (size_t i = 0; i < r.count && num_owned() != config_.num_chunks; ++i)
    if (Status s = check_chunk(chunk_of(mix64(r.ids[i]), chunk_bits_)); !s.ok()) return s;
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::push(const PushRequest& r, const std::vector<Origin>& origins) try {
  if (!r.validated)
    if (Status s = validate_push(r); !s.ok()) return s;
  thread_local Distinct distinct;
  thread_local Partition partition;
  thread_local WriteScratch scratch;
  distinct.build(r.ids, r.count);
  partition.build(distinct.ids(), distinct.hashes(), distinct.size(), chunk_bits_);
  const Optimizer::Step step =
      config_.optimizer.prepare(config_.dim, r.lr >= 0 ? r.lr : lr_.load(std::memory_order_relaxed));
  const PushArgs args{&distinct, r.gradients, r.counts, limited(r.event_times_ms, r.event_time_ms, r.now_ms), &step};
  const Values values{distinct.firsts(), r.gradients, sizeof(float) * config_.dim};
  Changes changes;
  const CountAtEnd counting{*this, changes};
  return write(partition, origins, values, scratch,
               [&](Chunk& chunk, const Items& items, uint32_t* rows, RowsAhead& ahead) {
                 chunk.push(items, rows, args, ahead, scratch, changes);
               });
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::assign(const AssignRequest& r, const std::vector<Origin>& origins) try {
  if (Status s = check_times(nullptr, r.count, r.event_time_ms, r.now_ms); !s.ok()) return s;
  if (Status s = check_finite(r.rows, r.count, config_.dim, "rows"); !s.ok()) return s;
  thread_local Distinct distinct;
  thread_local Partition partition;
  thread_local WriteScratch scratch;
  thread_local Scratch<uint32_t> last;
  distinct.build(r.ids, r.count);
  last.sized(distinct.size());
  for (size_t i = 0; i < r.count; ++i) last[distinct.distinct_of(static_cast<uint32_t>(i))] = static_cast<uint32_t>(i);
  partition.build(distinct.ids(), distinct.hashes(), distinct.size(), chunk_bits_);
  const AssignArgs args{last.data(), r.rows, limited(nullptr, r.event_time_ms, r.now_ms)};
  Changes changes;
  const CountAtEnd counting{*this, changes};
  const Values values{last.data(), r.rows, sizeof(float) * config_.dim};
  return write(partition, origins, values, scratch,
               [&](Chunk& chunk, const Items& items, uint32_t* rows, RowsAhead& ahead) {
                 chunk.assign(items, rows, args, ahead, scratch, changes);
               });
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::erase(const uint64_t* ids, size_t count, Reason reason, const std::vector<Origin>& origins,
                    uint64_t& removed) try {
  removed = 0;
  thread_local Distinct distinct;
  thread_local Partition partition;
  thread_local WriteScratch scratch;
  distinct.build(ids, count);
  partition.build(distinct.ids(), distinct.hashes(), distinct.size(), chunk_bits_);
  Changes changes;
  const CountAtEnd counting{*this, changes};
  const Status status = write(
      partition, origins, {}, scratch,
      [&](Chunk& chunk, const Items& items, uint32_t* rows, RowsAhead&) { chunk.erase(items, rows, reason, changes); });
  removed = changes.erased;
  return status;
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

}  // namespace embedstore
