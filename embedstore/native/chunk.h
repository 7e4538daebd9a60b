// One chunk of a table: rows, the index over them, tombstones, and where the chunk stands in its history.
//
// Locking: `mutex` protects everything else. The const methods need it shared, the others exclusive; none of them
// locks. Whoever holds a chunk's lock takes no other chunk's.
//
// Invariants
// - Every row in use is in the index under the hash of its id, and no two rows have the same id.
// - The clock is the largest event time of the ids that were written here, so it does not depend on what else a batch
//   held or on how many shards there are.
// - `version` grows by one with each batch that changes a row; no row or tombstone has a larger one.
// - A write either happens whole or, when memory runs out, not at all: it reserves first and changes then.
#pragma once

#include <cstdint>
#include <limits>
#include <shared_mutex>
#include <vector>

#include "native/admission.h"
#include "native/batch.h"
#include "native/delta.h"
#include "native/index.h"
#include "native/initializer.h"
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
  EventTimes times;
  float lr;
};

struct AssignArgs {
  const uint32_t* last;  // per source: the occurrence whose row is written
  const float* rows;     // [occurrences, dim]
  EventTimes times;
};

// Row numbers and sums of one write; reused from chunk to chunk.
struct WriteScratch {
  Scratch<uint32_t> rows;
  Scratch<float> sum;
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

  mutable std::shared_mutex mutex;

  // --- where the chunk stands
  uint64_t incarnation = 0;
  uint64_t version = 0;
  Cursor parent;  // the history this one continues, and the version at which it left it
  int64_t clock_ms = 0;
  Watermarks watermarks = no_watermarks();

  const Rows& rows() const noexcept { return contents_.rows; }
  const Tombstones& tombstones() const noexcept { return contents_.tombstones; }
  const Sketch& sketch() const noexcept { return contents_.sketch; }
  size_t memory_bytes() const noexcept;

  // Calls visit(i, row or kNoRow) for every item in order, with the first `prefetch_bytes` of each row on their way.
  template <int kWrite, class Visit>
  void visit_rows(const Items& items, size_t prefetch_bytes, Visit visit) const;

  // --- writes; the items' ids are distinct. All throw std::bad_alloc, and change nothing then.
  // Returns the number of rows inserted.
  size_t push(const Items& items, const PushArgs& args, WriteScratch& scratch);
  size_t assign(const Items& items, const AssignArgs& args, WriteScratch& scratch);
  // Returns the number of rows removed.
  size_t erase(const Items& items, Reason reason, WriteScratch& scratch);
  void advance_clock(int64_t event_ms) noexcept { clock_ms = event_ms > clock_ms ? event_ms : clock_ms; }

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
  // Gives every missing item a row (its id set, its version unset), or none of them.
  size_t insert_missing(const Items& items, uint32_t* rows);
  void look_up(const Items& items, uint32_t* rows) const;

  const ChunkConfig& config_;
  Contents contents_;
};

// Software-pipelined: the buckets of a group of ids are fetched together, then their rows, then each is used. Memory
// latency is paid once a group instead of twice an id.
template <int kWrite, class Visit>
void Chunk::visit_rows(const Items& items, size_t prefetch_bytes, Visit visit) const {
  constexpr size_t kGroup = 32;
  const Index& index = contents_.index;
  const Rows& rows = contents_.rows;
  uint32_t candidates[kGroup];
  for (size_t base = 0; base < items.count; base += kGroup) {
    const size_t count = items.count - base < kGroup ? items.count - base : kGroup;
    const uint64_t* hashes = items.hashes + base;
    if (base == 0)
      for (size_t i = 0; i < count; ++i) index.prefetch(hashes[i]);
    for (size_t i = 0; i < count; ++i) {
      candidates[i] = index.candidate(hashes[i]);
      if (candidates[i] == kNoRow) {
        index.prefetch_partner(hashes[i]);
      } else {
        rows.prefetch<kWrite>(candidates[i], prefetch_bytes);
      }
    }
    for (size_t i = 0; i < count; ++i) {
      if (candidates[i] != kNoRow) continue;
      candidates[i] = index.candidate_in_partner(hashes[i]);
      if (candidates[i] != kNoRow) rows.prefetch<kWrite>(candidates[i], prefetch_bytes);
    }
    for (size_t i = base + count; i < items.count && i < base + 2 * kGroup; ++i) index.prefetch(items.hashes[i]);
    for (size_t i = 0; i < count; ++i) {
      const uint64_t id = items.ids[base + i];
      uint32_t row = candidates[i];
      if (row == kNoRow) {
        row = index.find_in_stash(hashes[i]);
      } else if (rows.header(row).id() != id) {
        row = index.find(hashes[i], [&](uint32_t r) { return rows.header(r).id() == id; });
      }
      visit(base + i, row);
    }
  }
}

}  // namespace embedstore
