#include <algorithm>
#include <mutex>
#include <new>
#include <shared_mutex>

#include "native/table.h"

namespace embedstore {
namespace {

// Row numbers that a sweep looks at, or moves, under one hold of a chunk's lock.
constexpr size_t kStepRows = 2048;

}  // namespace

void Table::set_limits(const ChunkLimits& limits) noexcept {
  for (const auto& chunk : chunks_) {
    const std::unique_lock lock(chunk->mutex);
    chunk->limits = limits;
  }
}

// Chunks with equal watermarks have absorbed the same part of every stream, so the largest of their clocks is the
// latest event time in it: what each of them would show if its own ids had been in the latest events.
std::vector<Table::KnownClock> Table::clocks_by_watermarks() const {
  std::vector<KnownClock> known;
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    const auto same = std::find_if(known.begin(), known.end(), [&](const KnownClock& k) {
      return k.watermarks == chunk->watermarks || *k.watermarks == *chunk->watermarks;
    });
    if (same == known.end()) {
      known.push_back({chunk->watermarks, chunk->clock_ms});
    } else {
      same->clock_ms = std::max(same->clock_ms, chunk->clock_ms);
    }
  }
  return known;
}

void Table::raise_idle_clocks() {
  const std::vector<KnownClock> known = clocks_by_watermarks();
  for (const auto& chunk : chunks_) {
    const std::unique_lock lock(chunk->mutex);
    for (const KnownClock& k : known)
      if (k.watermarks == chunk->watermarks || *k.watermarks == *chunk->watermarks) chunk->advance_clock(k.clock_ms);
  }
}

void Table::count_expired(SweepResult& result) const {
  const std::vector<KnownClock> known = clocks_by_watermarks();
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    int64_t clock_ms = chunk->clock_ms;
    for (const KnownClock& k : known)
      if (*k.watermarks == *chunk->watermarks) clock_ms = std::max(clock_ms, k.clock_ms);
    result.rows_visited += chunk->rows().end();
    result.rows_expired += chunk->count_expired(clock_ms);
  }
  result.complete = true;
}

size_t Table::sweep_chunk(Chunk& chunk, size_t rows_max, SweepResult& result) {
  thread_local WriteScratch scratch;
  const std::unique_lock lock(chunk.mutex);
  const size_t before = chunk.memory_bytes();
  Changes changes;
  size_t done = 0;
  if (sweep_row_ < chunk.rows().end()) {
    done = chunk.sweep(rows_max, &sweep_row_, scratch, changes);
    result.rows_visited += done;
    result.rows_expired += changes.expired;
  } else {
    done = chunk.compact(rows_max);
    result.rows_moved += done;
    if (done < rows_max) {
      ++sweep_chunk_;
      sweep_row_ = 0;
    }
  }
  const size_t after = chunk.memory_bytes();
  result.bytes_released += before > after ? before - after : 0;
  count(changes);
  return done;
}

Status Table::sweep(size_t rows_max, bool dry_run, SweepResult& result) try {
  result = {};
  if (config_.embeddings_only) return Status::invalid("table", "holds embeddings only: its leader sweeps");
  if (dry_run) {
    count_expired(result);
    return {};
  }
  const std::lock_guard sweeping(sweep_mutex_);
  if (sweep_chunk_ == 0 && sweep_row_ == 0) raise_idle_clocks();
  size_t left = rows_max;
  while (left > 0 && sweep_chunk_ < chunks_.size())
    left -= std::min(left, std::max<size_t>(sweep_chunk(*chunks_[sweep_chunk_], std::min(left, kStepRows), result), 1));
  result.complete = sweep_chunk_ == chunks_.size();
  if (result.complete) sweep_chunk_ = 0;
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

}  // namespace embedstore
