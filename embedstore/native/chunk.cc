#include "native/chunk.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "native/quantize.h"

namespace embedstore {
namespace {

uint32_t to_seconds(int64_t ms) noexcept {
  return static_cast<uint32_t>(std::clamp<int64_t>(ms / 1000, 0, std::numeric_limits<uint32_t>::max()));
}

void see(RowHeader& header, uint32_t seconds) noexcept { header.last_seen_s = std::max(header.last_seen_s, seconds); }

// The event times and the summed gradient of all occurrences of one id.
struct Occurrences {
  Occurrences(const PushArgs& args, uint32_t first, int64_t clock_ms, uint32_t dim, float* sum) noexcept {
    gradient = args.gradients + size_t{first} * dim;
    earliest_ms = latest_ms = args.times.at(first, clock_ms);
    uint32_t at = args.distinct->next(first);
    if (at == Distinct::kEnd) return;
    std::copy_n(gradient, dim, sum);
    for (; at != Distinct::kEnd; at = args.distinct->next(at)) {
      const float* more = args.gradients + size_t{at} * dim;
      for (uint32_t d = 0; d < dim; ++d) sum[d] += more[d];
      earliest_ms = std::min(earliest_ms, args.times.at(at, clock_ms));
      latest_ms = std::max(latest_ms, args.times.at(at, clock_ms));
    }
    gradient = sum;
  }

  const float* gradient;
  int64_t earliest_ms;
  int64_t latest_ms;
};

uint64_t count_of(const PushArgs& args, uint32_t first) noexcept {
  uint64_t count = 0;
  for (uint32_t at = first; at != Distinct::kEnd; at = args.distinct->next(at))
    count += args.counts != nullptr ? args.counts[at] : 1;
  return count;
}

// Which items have no row yet.
const bool* mark_missing(const Items& items, const uint32_t* rows, WriteScratch& scratch) {
  bool* fresh = scratch.fresh.sized(items.count);
  std::transform(rows, rows + items.count, fresh, [](uint32_t row) { return row == kNoRow; });
  return fresh;
}

}  // namespace

void RowsAhead::begin_block() noexcept {
  Place* places = places_ + begun_ % (2 * kBlock);
  const void* versions[kBlock];
  for (size_t k = 0; k < kBlock; ++k) {
    places[k] = {nullptr, nullptr};
    while (part_ != end_ && at_ == part_->items.count) {
      ++part_;
      at_ = 0;
    }
    if (part_ == end_) continue;
    if (values_.floats != nullptr)
      places[k].values = reinterpret_cast<const std::byte*>(values_.floats) +
                         values_.occurrences[part_->items.sources[at_]] * values_.num_bytes;
    ++at_;
    if (const uint32_t row = *rows_++; row < kRowUnset) {
      places[k].header = &part_->rows->header(row);
      versions[k] = part_->rows->version_line(row);
    }
  }
  begun_ += kBlock;
  for (size_t k = 0; k < kBlock; ++k)
    if (places[k].values != nullptr) prefetch_line(places[k].values);
  for (size_t k = 0; k < kBlock; ++k)
    if (places[k].header != nullptr) prefetch_line<1>(versions[k]);
  for (size_t k = 0; k < kBlock; ++k)
    if (places[k].header != nullptr) prefetch_line<1>(places[k].header);
}

void Chunk::Contents::swap(Contents& other) noexcept {
  rows.swap(other.rows);
  std::swap(index, other.index);
  std::swap(tombstones, other.tombstones);
  std::swap(sketch, other.sketch);
}

size_t Chunk::memory_bytes() const noexcept {
  return sizeof(Chunk) + contents_.rows.memory_bytes() + contents_.index.memory_bytes() +
         contents_.tombstones.memory_bytes() + contents_.sketch.memory_bytes();
}

uint32_t Chunk::alive_since_s(int64_t at_clock_ms) const noexcept {
  return limits.ttl_ms < 0 || at_clock_ms <= limits.ttl_ms ? 0 : to_seconds(at_clock_ms - limits.ttl_ms);
}

size_t Chunk::insert_missing(const Items& items, uint32_t* rows) {
  const auto missing = static_cast<size_t>(std::count(rows, rows + items.count, kNoRow));
  if (missing == 0) return 0;
  contents_.rows.reserve(missing);
  contents_.index.reserve(missing, contents_.rows);
  size_t i = 0;
  std::vector<uint32_t> added;
  added.reserve(missing);
  try {
    for (; i < items.count; ++i) {
      if (rows[i] != kNoRow) continue;
      rows[i] = contents_.rows.allocate(items.ids[i]);
      contents_.index.insert(items.hashes[i], rows[i], contents_.rows);
      added.push_back(static_cast<uint32_t>(i));
    }
  } catch (const std::bad_alloc&) {
    contents_.rows.release(rows[i]);
    for (const uint32_t a : added) {
      contents_.index.erase(items.hashes[a], rows[a]);
      contents_.rows.release(rows[a]);
    }
    throw;
  }
  return missing;
}

void Chunk::begin_row(uint64_t id, uint32_t row, int64_t seen_ms) noexcept {
  RowHeader& header = contents_.rows.header(row);
  header.first_seen_s = header.last_seen_s = to_seconds(seen_ms);
  header.updates = 0;
  if (!config_.embeddings_only) config_.optimizer.init_state(contents_.rows.state(row), config_.dim);
  contents_.tombstones.remove(id);
}

void Chunk::remove(uint64_t id, uint64_t hash, uint32_t row, Reason reason) noexcept {
  contents_.index.erase(hash, row);
  contents_.rows.release(row);
  contents_.tombstones.add({id, version, reason});
}

void Chunk::admit(const Items& items, const uint32_t* rows, const PushArgs& args, WriteScratch& scratch) const {
  using Fate = WriteScratch::Fate;
  Fate* fates = scratch.fates.sized(items.count);
  const uint32_t alive_since = alive_since_s();
  for (size_t i = 0; i < items.count; ++i) {
    fates[i] = {Fate::kKnown, true};
    if (!is_new(rows[i], alive_since)) continue;
    fates[i].occurrences = count_of(args, args.distinct->first(items.sources[i]));
    const uint64_t seen = contents_.sketch.count(items.hashes[i]) + fates[i].occurrences;
    fates[i].admitted = seen >= config_.admission.needed(items.ids[i]);
  }
}

void Chunk::drop(const Items& items, uint32_t* rows, const WriteScratch& scratch, Changes& changes) noexcept {
  using Fate = WriteScratch::Fate;
  for (size_t i = 0; i < items.count; ++i) {
    const Fate& fate = scratch.fates[i];
    if (fate.occurrences == Fate::kKnown) continue;
    if (fate.admitted) {
      contents_.sketch.remove(items.hashes[i], version);
      continue;
    }
    if (rows[i] < RowsAhead::kRowUnset) {
      remove(items.ids[i], items.hashes[i], rows[i], Reason::kExpired);
      ++changes.expired;
    }
    rows[i] = RowsAhead::kRowUnset;
    ++changes.dropped;
    if (fate.occurrences == 0) continue;
    const auto occurrences = static_cast<uint32_t>(std::min<uint64_t>(fate.occurrences, 0xFFFFFFFF));
    contents_.sketch.add(items.hashes[i], occurrences, version);
  }
}

// Reserves first, then changes.
void Chunk::push(const Items& items, uint32_t* rows, const PushArgs& args, RowsAhead& ahead, WriteScratch& scratch,
                 Changes& changes) {
  const uint32_t dim = config_.dim;
  float* sum = scratch.sum.sized(dim);
  const bool selective = config_.admission.counts();
  size_t applied = items.count;
  bool changed = false;
  size_t removed = 0;
  if (selective) {
    admit(items, rows, args, scratch);
    for (size_t i = 0; i < items.count; ++i) {
      if (scratch.fates[i].admitted) continue;
      --applied;
      changed |= scratch.fates[i].occurrences != 0 || rows[i] != kNoRow;
      rows[i] != kNoRow ? ++removed : rows[i] = RowsAhead::kRowUnset;
    }
    contents_.sketch.reserve(items.count - applied);
  }
  reserve_removals(removed, static_cast<size_t>(std::count(rows, rows + items.count, kNoRow)), scratch);
  const bool* fresh = mark_missing(items, rows, scratch);
  changes.inserted += insert_missing(items, rows);

  Rows& store = contents_.rows;
  const uint32_t alive_since = alive_since_s();
  // A lower capacity may be all there is to a push whose ids are all dropped unseen.
  if (changed || applied != 0 || store.size() > limits.rows_max) store.set_newest(++version);
  if (selective) drop(items, rows, scratch, changes);
  int64_t newest_ms = clock_ms;
  for (size_t i = 0; i < items.count; ++i) {
    ahead.step();
    const Occurrences seen(args, args.distinct->first(items.sources[i]), clock_ms, dim, sum);
    newest_ms = std::max(newest_ms, seen.latest_ms);
    const uint32_t row = rows[i];
    if (row == RowsAhead::kRowUnset) continue;
    RowHeader& header = store.header(row);
    const bool expired = !fresh[i] && header.last_seen_s < alive_since;
    if (expired || fresh[i]) {
      begin_row(items.ids[i], row, seen.earliest_ms);
      config_.init.fill(items.ids[i], store.embedding(row), dim);
      changes.expired += expired;
      changes.inserted += expired;
    }
    see(header, to_seconds(seen.latest_ms));
    if (header.updates != std::numeric_limits<uint32_t>::max()) ++header.updates;
    (*args.step)(store.embedding(row), store.state(row), seen.gradient, header.updates);
    store.set_version(row, version);
  }
  advance_clock(newest_ms);
  changes.pushed += applied;
  if (removed + evict(scratch, changes) != 0) settle_removals();
}

void Chunk::assign(const Items& items, uint32_t* rows, const AssignArgs& args, RowsAhead& ahead, WriteScratch& scratch,
                   Changes& changes) {
  const uint32_t dim = config_.dim;
  reserve_removals(0, static_cast<size_t>(std::count(rows, rows + items.count, kNoRow)), scratch);
  const bool* fresh = mark_missing(items, rows, scratch);
  changes.inserted += insert_missing(items, rows);

  Rows& store = contents_.rows;
  const uint32_t alive_since = alive_since_s();
  store.set_newest(++version);
  const int64_t before_ms = clock_ms;
  const EncodeRow encode = encoder(config_.stored);
  for (size_t i = 0; i < items.count; ++i) {
    ahead.step();
    const uint32_t row = rows[i];
    const uint32_t occurrence = args.last[items.sources[i]];
    const int64_t seen_ms = args.times.at(occurrence, before_ms);
    advance_clock(seen_ms);
    const bool expired = !fresh[i] && store.header(row).last_seen_s < alive_since;
    if (expired || fresh[i]) {
      begin_row(items.ids[i], row, seen_ms);
      changes.expired += expired;
      changes.inserted += expired;
      if (config_.admission.counts()) contents_.sketch.remove(items.hashes[i], version);
    }
    see(store.header(row), to_seconds(seen_ms));
    encode(args.rows + size_t{occurrence} * dim, dim, store.packed(row));
    store.set_version(row, version);
  }
  if (evict(scratch, changes) != 0) settle_removals();
}

void Chunk::erase(const Items& items, uint32_t* rows, Reason reason, Changes& changes) {
  const size_t removed = items.count - static_cast<size_t>(std::count(rows, rows + items.count, kNoRow));
  if (removed == 0) return;
  contents_.tombstones.reserve(removed);

  const uint32_t alive_since = alive_since_s();
  contents_.rows.set_newest(++version);
  for (size_t i = 0; i < items.count; ++i) {
    if (rows[i] == kNoRow) continue;
    changes.erased += contents_.rows.header(rows[i]).last_seen_s >= alive_since;
    remove(items.ids[i], items.hashes[i], rows[i], reason);
  }
  settle_removals();
}

}  // namespace embedstore
