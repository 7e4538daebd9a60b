// One chunk of a table: rows, the index over them, tombstones, and where the chunk stands in its history.
//
// Locking: `mutex` protects everything else. The const methods need it shared, the others exclusive; none of them
// locks. Whoever holds the locks of several chunks took them in ascending order.
//
// Invariants
// - Every row in use is in the index under the hash of its id, and no two rows have the same id.
// - The clock is the largest event time of the ids that were written here, so it does not depend on what else a batch
//   held or on how many shards there are; a sweep may raise it to that of chunks that have absorbed the same streams.
// - A row whose last_seen lies longer before the clock than the time to live is expired: to every reader it is absent
//   from that moment on, whether a sweep has removed it yet or not.
// - `version` grows by one with each batch that changes a row, a tombstone or the sketch; none of them has a larger
// one.
// - After a push or an assign there are no more rows than the chunk's share of the table's capacity.
// - A write either happens whole or, when memory runs out, not at all: it reserves first and changes then.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "native/admission.h"
#include "native/batch.h"
#include "native/delta.h"
#include "native/fair_mutex.h"
#include "native/index.h"
#include "native/initializer.h"
#include "native/lookup.h"
#include "native/optimizer.h"
#include "native/rows.h"
#include "native/sketch.h"
#include "native/status.h"
#include "native/tombstones.h"
#include "native/watermarks.h"

namespace embedstore {

// What all chunks of a table have in common; fixed for the table's life.
struct ChunkConfig {
  uint32_t num_chunks = 1;
  uint32_t dim = 1;
  Optimizer optimizer;
  Initializer init;
  bool embeddings_only = false;
  RowType stored = RowType::kFloat32;  // others with embeddings_only
  size_t tombstones_max = 8192;
  Admission admission;

  size_t sketch_bytes_max() const noexcept { return embeddings_only ? 0 : admission.sketch_bytes_max(num_chunks); }
};

// What may change during a chunk's life.
struct ChunkLimits {
  int64_t ttl_ms = -1;  // negative: rows do not expire
  uint32_t rows_max = kNoRow;
};

// What writes and sweeps did; sums over chunks.
struct Changes {
  uint64_t pushed = 0;    // rows that took a gradient
  uint64_t inserted = 0;  // rows that are new, or began afresh
  uint64_t dropped = 0;   // ids that were not admitted
  uint64_t expired = 0;
  uint64_t evicted = 0;
  uint64_t erased = 0;  // rows that a delete found alive
};

// Event times of a batch, in milliseconds; a later time than `limit_ms` counts as `limit_ms`.
struct EventTimes {
  static constexpr int64_t kNone = -1;

  const int64_t* each = nullptr;  // per occurrence, or null
  int64_t all = kNone;            // for every occurrence, unless `each`
  int64_t limit_ms = std::numeric_limits<int64_t>::max();

  // Of occurrence i, limited; the chunk's clock when the batch has no times.
  int64_t at(uint32_t i, int64_t clock_ms) const noexcept {
    const int64_t given = each != nullptr ? each[i] : all;
    return given == kNone ? clock_ms : given < limit_ms ? given : limit_ms;
  }
};

struct PushArgs {
  const Distinct* distinct;
  const float* gradients;  // [occurrences, dim]
  const uint32_t* counts;  // what each occurrence stands for; null: one
  EventTimes times;
  const Optimizer::Step* step;
};

struct AssignArgs {
  const uint32_t* last;  // per source: the occurrence whose row is written
  const float* rows;     // [occurrences, dim]
  EventTimes times;
};

// Where the caller's floats of each item of a write lie: occurrence `occurrences[source]`, of `num_bytes`, at `floats`.
struct Values {
  const uint32_t* occurrences = nullptr;
  const float* floats = nullptr;
  size_t num_bytes = 0;
};

// Fetches the rows of a window of parts and the values that go to them, ahead of the loop that uses them.
//
// A prefetch of a page that the processor has not at hand holds up what follows until the page is found. So the first
// lines of a block of items are asked for right after each other: their pages are looked for side by side. The lines
// behind them follow one item at a time, while others are used: more at once than there can be under way hold up, too.
class RowsAhead {
 public:
  // Row numbers from here on mean that there is none.
  static constexpr uint32_t kRowUnset = 0xFFFFFFFE;

  RowsAhead(std::span<const Part> parts, const uint32_t* rows, size_t row_bytes, const Values& values) noexcept
      : part_(parts.data()), end_(parts.data() + parts.size()), rows_(rows), row_bytes_(row_bytes), values_(values) {
    begin_block();
    for (size_t i = 0; i < kBlock; ++i) fetch_rest(i);
    begin_block();
  }

  // To be called for each item in turn.
  void step() noexcept {
    fetch_rest(used_ + kBlock);
    if (++used_ % kBlock == 0) begin_block();
  }

 private:
  static constexpr size_t kBlock = 16;

  // What an item needs: null where there is none.
  struct Place {
    const RowHeader* header;
    const std::byte* values;
  };

  void begin_block() noexcept;
  void fetch_rest(size_t item) const noexcept {
    const Place& place = places_[item % (2 * kBlock)];
    if (place.header != nullptr) Rows::prefetch<1>(place.header, row_bytes_);
    if (place.values != nullptr)
      for (size_t offset = 64; offset < values_.num_bytes; offset += 64) prefetch_line(place.values + offset);
  }

  const Part* part_;
  const Part* end_;
  const uint32_t* rows_;
  size_t row_bytes_;
  Values values_;
  size_t at_ = 0;
  size_t begun_ = 0;
  size_t used_ = 0;
  Place places_[2 * kBlock];
};

// What one write works with; reused from chunk to chunk.
struct WriteScratch {
  // Of a new id in a push that admission decides about: how often it occurs, or kKnown for an id with a row.
  struct Fate {
    static constexpr uint64_t kKnown = ~uint64_t{0};
    uint64_t occurrences;
    bool admitted;
  };
  struct Candidate {
    uint32_t last_seen_s;
    uint32_t row;
    uint64_t version;
    uint64_t id;
  };

  Scratch<uint32_t> rows;  // of the window's items
  Scratch<Fate> fates;     // of one part's items
  Scratch<bool> fresh;     // whether it had none, of one part's items
  Scratch<float> sum;
  std::vector<Candidate> candidates;  // for eviction
};

// Where the chunks of one table get their memory.
struct Pools {
  explicit Pools(size_t slab_bytes) noexcept : slabs(slab_bytes) {}
  SlabPool slabs;
  BuddyPool buckets;
};

struct Cursor {
  uint64_t incarnation = 0;
  uint64_t version = 0;
};

class Chunk {
 public:
  // What a full delta replaces, in one swap.
  struct Contents {
    Contents(const RowLayout& layout, Pools& pools, size_t sketch_bytes_max) noexcept
        : rows(layout, pools.slabs), index(&pools.buckets), sketch(sketch_bytes_max) {}
    void swap(Contents& other) noexcept;

    Rows rows;
    Index index;
    Tombstones tombstones;
    Sketch sketch;
  };

  Chunk(const ChunkConfig& config, const RowLayout& layout, Pools& pools) noexcept
      : config_(config), contents_(layout, pools, config.sketch_bytes_max()) {}

  mutable FairMutex mutex;

  // --- where the chunk stands
  uint64_t incarnation = 0;
  uint64_t version = 0;
  Cursor parent;  // the history this one continues, and the version at which it left it
  int64_t clock_ms = 0;
  Watermarks watermarks = no_watermarks();
  ChunkLimits limits;

  const Rows& rows() const noexcept { return contents_.rows; }
  const Index& index() const noexcept { return contents_.index; }
  const Tombstones& tombstones() const noexcept { return contents_.tombstones; }
  const Sketch& sketch() const noexcept { return contents_.sketch; }
  size_t memory_bytes() const noexcept;
  Part part(const Items& items) noexcept { return {this, &contents_.index, &contents_.rows, items}; }

  // A row that was last seen before this second is expired; 0 when none is.
  uint32_t alive_since_s() const noexcept { return alive_since_s(clock_ms); }
  uint32_t alive_since_s(int64_t at_clock_ms) const noexcept;
  bool is_alive(uint32_t row) const noexcept { return contents_.rows.header(row).last_seen_s >= alive_since_s(); }

  // --- writes; the items' ids are distinct, and `rows` are their row numbers or kNoRow, which the write may change.
  // `ahead` fetches later rows. All throw std::bad_alloc, and change nothing then.
  void push(const Items& items, uint32_t* rows, const PushArgs& args, RowsAhead& ahead, WriteScratch& scratch,
            Changes& changes);
  void assign(const Items& items, uint32_t* rows, const AssignArgs& args, RowsAhead& ahead, WriteScratch& scratch,
              Changes& changes);
  void erase(const Items& items, uint32_t* rows, Reason reason, Changes& changes);
  void advance_clock(int64_t event_ms) noexcept { clock_ms = event_ms > clock_ms ? event_ms : clock_ms; }

  // --- what a sweep does (chunk_sweep.cc)
  // Looks at `rows_max` row numbers from `*row` on, which it moves, and removes the expired rows among them, and those
  // above the capacity. Returns how many it looked at. Throws std::bad_alloc, and changes nothing then.
  size_t sweep(size_t rows_max, uint32_t* row, WriteScratch& scratch, Changes& changes);
  uint64_t count_expired(int64_t at_clock_ms) const noexcept;
  // Moves at most `moves_max` rows to lower numbers, and gives memory back that is not needed then. Returns the moves.
  size_t compact(size_t moves_max);

  // --- sync (chunk_sync.cc)
  bool can_continue(const Cursor& cursor) const noexcept;
  // What the delta since the cursor will hold, or the full chunk when it cannot be continued from there. `out` is new.
  // Throws std::bad_alloc.
  void plan_delta(uint32_t chunk, const Cursor& since, bool embeddings_only, DeltaPlan& out) const;
  // Whether the plan still says where everything is.
  bool still_as(const DeltaPlan& plan) const noexcept;
  // Fills `plan.layout.total` bytes; the checksum is not yet there. The plan is of this moment.
  void write_delta(const DeltaPlan& plan, uint8_t* data) const noexcept;
  // What a delta means to this chunk: apply it, ignore it because it is known already, or refuse it.
  enum class Verdict { kReplace, kContinue, kKnown, kGap };
  Verdict judge(const DeltaView& delta) const noexcept;
  // For kReplace: the contents, built without touching the chunk. Fails on what DeltaView leaves to it. Throws
  // std::bad_alloc.
  static Status build(const DeltaView& delta, const ChunkConfig& config, Contents& out);
  void replace(const DeltaView& delta, Contents& contents) noexcept;
  // For kContinue. Fails on what DeltaView leaves to it, or throws std::bad_alloc, and changes nothing then.
  Status continue_with(const DeltaView& delta, const Items& items, WriteScratch& scratch);

 private:
  // Gives every item whose row is kNoRow a row (its id set, its version unset), or none of them.
  size_t insert_missing(const Items& items, uint32_t* rows);
  bool is_new(uint32_t row, uint32_t alive_since) const noexcept {
    return row == kNoRow || contents_.rows.header(row).last_seen_s < alive_since;
  }
  // Writes the fate of each item of a push to scratch.fates; changes nothing else.
  void admit(const Items& items, const uint32_t* rows, const PushArgs& args, WriteScratch& scratch) const;
  // Takes the new ids out that are not admitted: their rows become RowsAhead::kRowUnset, the sketch counts them.
  void drop(const Items& items, uint32_t* rows, const WriteScratch& scratch, Changes& changes) noexcept;
  void begin_row(uint64_t id, uint32_t row, int64_t seen_ms) noexcept;
  // Removes a row that is there; room for its tombstone is reserved.
  void remove(uint64_t id, uint64_t hash, uint32_t row, Reason reason) noexcept;
  // After removals. A chunk remembers no more of them than it is worth: the chunk itself is the shorter answer then.
  void settle_removals() noexcept {
    constexpr size_t kAlways = 256;
    const size_t worth = std::max<size_t>(kAlways, 2 * size_t{contents_.rows.size()});
    contents_.tombstones.settle(std::min(config_.tombstones_max, worth));
  }
  // Makes room for what evict() will do once there are `more` rows, beside `removals` others.
  void reserve_removals(size_t removals, size_t more, WriteScratch& scratch);
  // Returns how many; settling comes after the last removal of a write, because it gives reserved room back.
  uint32_t evict(WriteScratch& scratch, Changes& changes) noexcept;

  const ChunkConfig& config_;
  Contents contents_;
};

}  // namespace embedstore
