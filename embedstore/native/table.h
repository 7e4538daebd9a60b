// One table: its chunks, and every batch operation on them.
//
// Any number of threads may call anything. A batch is cut by chunk once and each chunk's lock is taken once. A batch
// works on a window of chunks at a time, so that the look-ups of one hide the latency of the next; it takes the locks
// of a window in ascending order and takes no other meanwhile, so no two batches wait for each other in a circle. A
// reader may see a batch in some chunks and not yet in others, but never half of it in one. Pushes that name the same
// stream follow one another (a lock per stream is held from the check of the watermarks to the last chunk); the order
// is stream locks, the sweep's lock, chunk locks.
//
// Errors are values. When memory runs out, kNoMemory: each chunk then has its part of the batch whole or not at all,
// and with origins the same push can be repeated, because chunks that have it skip it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "native/chunk.h"

namespace embedstore {

struct TableConfig : ChunkConfig {
  uint32_t chunk_begin = 0;  // the chunks that this table owns
  uint32_t chunk_end = 1;
  bool init_on_miss = false;
  float lr = 0;
  ChunkLimits limits;  // at first
};

// What a row takes at most, its share of index and versions included: by this bytes_max becomes a number of rows.
size_t bytes_per_row(const TableConfig& config) noexcept;

// Event times further in the future than this count as this far: a wrong clock must not age every row.
inline constexpr int64_t kFutureToleranceMs = 60'000;

// Ids that a batch works on at once, at least.
inline constexpr size_t kWindowItems = 512;

// Where a pull goes; null members are not wanted. `rows` need not be aligned.
struct PullTarget {
  void* rows = nullptr;              // [n, dim]
  RowType type = RowType::kFloat32;  // or kFloat16
  uint8_t* found = nullptr;
  uint32_t* updates = nullptr;
  int64_t* first_seen_s = nullptr;
  int64_t* last_seen_s = nullptr;
};

struct PushRequest {
  const uint64_t* ids = nullptr;
  const float* gradients = nullptr;  // [count, dim]
  size_t count = 0;
  const uint32_t* counts = nullptr;           // occurrences that each entry stands for; null: one
  const int64_t* event_times_ms = nullptr;    // per id, or null
  int64_t event_time_ms = EventTimes::kNone;  // for all, unless event_times_ms
  int64_t now_ms = 0;
  float lr = -1;           // negative: the table's
  bool validated = false;  // the caller has passed the same arrays through validate_push()
};

struct AssignRequest {
  const uint64_t* ids = nullptr;
  const float* rows = nullptr;
  size_t count = 0;
  int64_t event_time_ms = EventTimes::kNone;
  int64_t now_ms = 0;
};

struct ScannedChunk {
  std::vector<uint64_t> ids;
  std::vector<float> embeddings;
  std::vector<uint32_t> updates;
  std::vector<int64_t> first_seen_s;
  std::vector<int64_t> last_seen_s;
};

struct ChunkState {
  uint64_t incarnation;
  uint64_t version;
  int64_t clock_ms;
};

// Sums since the table was made, and what it holds now.
struct Counters {
  uint64_t pulled_rows;
  uint64_t missed_rows;
  Changes changes;
  uint64_t tombstones;
  uint64_t sketch_bytes;
  uint64_t sketch_halvings;
};

struct SweepResult {
  uint64_t rows_visited = 0;
  uint64_t rows_expired = 0;
  uint64_t rows_moved = 0;
  uint64_t bytes_released = 0;
  bool complete = false;  // it came to the end of the last chunk; the next sweep begins with the first
};

class Table {
 public:
  // `incarnations` has one nonzero number for each owned chunk. Throws std::bad_alloc.
  Table(const TableConfig& config, const std::vector<uint64_t>& incarnations);

  const TableConfig& config() const noexcept { return config_; }
  uint32_t num_owned() const noexcept { return config_.chunk_end - config_.chunk_begin; }
  void set_lr(float lr) noexcept { lr_.store(lr, std::memory_order_relaxed); }
  uint64_t size() const;
  uint64_t memory_bytes() const;
  Counters counters() const;

  // --- reads (table.cc)
  Status pull(const uint64_t* ids, size_t count, const PullTarget& target) const;
  // As pull, but kBusy, with rows half written, rather than waiting for a chunk.
  Status try_pull(const uint64_t* ids, size_t count, const PullTarget& target) const;
  // As pull, and no counter moves.
  Status peek(const uint64_t* ids, size_t count, const PullTarget& target) const;
  Status scan(uint32_t chunk, ScannedChunk& out) const;

  // --- writes (table_write.cc)
  Status validate_push(const PushRequest& request) const;
  Status push(const PushRequest& request, const std::vector<Origin>& origins);
  Status assign(const AssignRequest& request, const std::vector<Origin>& origins);
  Status erase(const uint64_t* ids, size_t count, Reason reason, const std::vector<Origin>& origins, uint64_t& removed);

  // --- expiry and capacity (table_sweep.cc)
  void set_limits(const ChunkLimits& limits) noexcept;
  // Goes on where the last sweep stopped, through at most `rows_max` row numbers. With dry_run it only counts, through
  // the whole table.
  Status sweep(size_t rows_max, bool dry_run, SweepResult& result);

  // --- streams and sync (table_sync.cc)
  using DistinctWatermarks = std::vector<std::pair<Watermarks, std::vector<uint32_t>>>;
  Status watermarks(DistinctWatermarks& out) const;
  // Raises (or, with only_new, only adds) streams in every chunk. `list` is ascending.
  Status raise_all(const WatermarkList& list, bool only_new);
  Status forget_stream(const std::string& stream);
  // Raises one chunk's watermarks and clock.
  Status raise_one(uint32_t chunk, const WatermarkList& list, int64_t clock_ms);
  void states(std::vector<ChunkState>& out) const;
  Status branch(const std::vector<uint64_t>& incarnations);
  // `allocate(bytes)` gives the memory that the delta is written to, or throws std::bad_alloc. It is called with no
  // lock held, once or, when the chunk moved meanwhile, twice: the last memory counts.
  using Allocate = std::function<uint8_t*(size_t)>;
  Status delta(uint32_t chunk, const Cursor& since, bool embeddings_only, const Allocate& allocate) const;
  Status apply(const uint8_t* data, size_t num_bytes, uint32_t& chunk, Cursor& now);

 private:
  class StreamLocks;

  Chunk& chunk_at(uint32_t chunk) noexcept { return *chunks_[chunk - config_.chunk_begin]; }
  const Chunk& chunk_at(uint32_t chunk) const noexcept { return *chunks_[chunk - config_.chunk_begin]; }
  bool owns(uint32_t chunk) const noexcept { return chunk >= config_.chunk_begin && chunk < config_.chunk_end; }
  Status check_owned(const Partition& partition) const;
  Status check_chunk(uint32_t chunk) const;
  Status check_times(const int64_t* each, size_t count, int64_t all, int64_t now_ms) const;
  Status check_delta(const DeltaView& delta) const;
  Watermarks shared_set(const WatermarkList& list);
  EventTimes limited(const int64_t* each, int64_t all, int64_t now_ms) const noexcept;
  Status read(const uint64_t* ids, size_t count, const PullTarget& target, bool wait, uint64_t& missed) const;
  Status counted_read(const uint64_t* ids, size_t count, const PullTarget& target, bool wait) const;
  void read_window(std::span<const Part> parts, const PullTarget& target, float* initial, uint64_t& missed) const;

  // Runs change(chunk, items, rows, ahead) under the lock of each chunk that the write concerns, where it has ids, and
  // moves its watermarks.
  template <class Change>
  Status write(const Partition& partition, const std::vector<Origin>& origins, const Values& values,
               WriteScratch& scratch, Change change);
  class WriteWindow;
  struct CountAtEnd;
  Status check_origins(const std::vector<Origin>& origins, OriginPlan& plan) const;
  void count(const Changes& changes) noexcept;

  struct KnownClock {
    Watermarks watermarks;
    int64_t clock_ms;
  };
  std::vector<KnownClock> clocks_by_watermarks() const;
  void raise_idle_clocks();
  void count_expired(SweepResult& result) const;
  // One chunk's share of a sweep. Returns the work done, in rows.
  size_t sweep_chunk(Chunk& chunk, size_t rows_max, SweepResult& result);

  const TableConfig config_;
  const RowLayout layout_;
  const unsigned chunk_bits_;
  Pools pools_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::array<std::mutex, 16> stream_locks_;
  std::mutex recent_mutex_;
  Watermarks recent_ = no_watermarks();  // the last set that a delta brought
  std::atomic<float> lr_;
  mutable std::atomic<uint64_t> pulled_rows_{0};
  mutable std::atomic<uint64_t> missed_rows_{0};
  mutable std::mutex counters_mutex_;
  Changes changes_;

  // Where the sweep stands.
  std::mutex sweep_mutex_;
  size_t sweep_chunk_ = 0;
  uint32_t sweep_row_ = 0;
};

}  // namespace embedstore
