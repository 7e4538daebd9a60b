#include "native/chunk.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "native/quantize.h"

namespace embedstore {
namespace {

constexpr size_t kAhead = 6;  // rows fetched ahead of the one being written

uint32_t to_seconds(int64_t ms) noexcept {
  return static_cast<uint32_t>(std::clamp<int64_t>(ms / 1000, 0, std::numeric_limits<uint32_t>::max()));
}

void see(RowHeader& header, uint32_t seconds) noexcept { header.last_seen_s = std::max(header.last_seen_s, seconds); }

void first_see(RowHeader& header, uint32_t seconds) noexcept {
  header.first_seen_s = seconds;
  header.last_seen_s = seconds;
  header.updates = 0;
}

}  // namespace

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

void Chunk::look_up(const Items& items, uint32_t* rows) const {
  visit_rows<1>(items, sizeof(RowHeader), [rows](size_t i, uint32_t row) { rows[i] = row; });
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

size_t Chunk::push(const Items& items, const PushArgs& args, WriteScratch& scratch) {
  if (items.count == 0) return 0;
  const uint32_t dim = config_.dim;
  uint32_t* rows = scratch.rows.sized(items.count);
  float* sum = scratch.sum.sized(dim);
  look_up(items, rows);
  const size_t inserted = insert_missing(items, rows);

  Rows& store = contents_.rows;
  const size_t row_bytes = sizeof(RowHeader) + sizeof(float) * (dim + config_.optimizer.state_floats(dim));
  store.set_newest(++version);
  int64_t newest_ms = clock_ms;
  for (size_t i = 0; i < std::min(kAhead, items.count); ++i) store.prefetch<1>(rows[i], row_bytes);
  for (size_t i = 0; i < items.count; ++i) {
    if (i + kAhead < items.count) store.prefetch<1>(rows[i + kAhead], row_bytes);
    const Distinct& distinct = *args.distinct;
    const uint32_t first = distinct.first(items.sources[i]);
    const float* gradient = args.gradients + size_t{first} * dim;
    int64_t earliest_ms = args.times.at(first, clock_ms);
    int64_t latest_ms = earliest_ms;
    if (uint32_t at = distinct.next(first); at != Distinct::kEnd) {
      std::copy_n(gradient, dim, sum);
      for (; at != Distinct::kEnd; at = distinct.next(at)) {
        const float* more = args.gradients + size_t{at} * dim;
        for (uint32_t d = 0; d < dim; ++d) sum[d] += more[d];
        earliest_ms = std::min(earliest_ms, args.times.at(at, clock_ms));
        latest_ms = std::max(latest_ms, args.times.at(at, clock_ms));
      }
      gradient = sum;
    }
    const uint32_t row = rows[i];
    RowHeader& header = store.header(row);
    if (!store.in_use(row)) {
      first_see(header, to_seconds(earliest_ms));
      config_.init.fill(items.ids[i], store.embedding(row), dim);
      config_.optimizer.init_state(store.state(row), dim);
      contents_.tombstones.remove(items.ids[i]);
    }
    see(header, to_seconds(latest_ms));
    newest_ms = std::max(newest_ms, latest_ms);
    if (header.updates != std::numeric_limits<uint32_t>::max()) ++header.updates;
    config_.optimizer.apply(store.embedding(row), store.state(row), gradient, dim, args.lr, header.updates);
    store.set_version(row, version);
  }
  advance_clock(newest_ms);
  return inserted;
}

size_t Chunk::assign(const Items& items, const AssignArgs& args, WriteScratch& scratch) {
  if (items.count == 0) return 0;
  const uint32_t dim = config_.dim;
  uint32_t* rows = scratch.rows.sized(items.count);
  look_up(items, rows);
  const size_t inserted = insert_missing(items, rows);

  Rows& store = contents_.rows;
  store.set_newest(++version);
  advance_clock(args.times.at(0, clock_ms));
  const EncodeRow encode = encoder(config_.stored);
  for (size_t i = 0; i < items.count; ++i) {
    const uint32_t row = rows[i];
    const uint32_t occurrence = args.last[items.sources[i]];
    const uint32_t seconds = to_seconds(args.times.at(occurrence, clock_ms));
    if (!store.in_use(row)) {
      first_see(store.header(row), seconds);
      if (!config_.embeddings_only) config_.optimizer.init_state(store.state(row), dim);
      contents_.tombstones.remove(items.ids[i]);
    }
    see(store.header(row), seconds);
    encode(args.rows + size_t{occurrence} * dim, dim, store.packed(row));
    store.set_version(row, version);
  }
  return inserted;
}

size_t Chunk::erase(const Items& items, Reason reason, WriteScratch& scratch) {
  uint32_t* rows = scratch.rows.sized(items.count);
  look_up(items, rows);
  const size_t removed = items.count - static_cast<size_t>(std::count(rows, rows + items.count, kNoRow));
  if (removed == 0) return 0;
  contents_.tombstones.reserve(removed);

  contents_.rows.set_newest(++version);
  for (size_t i = 0; i < items.count; ++i) {
    if (rows[i] == kNoRow) continue;
    contents_.index.erase(items.hashes[i], rows[i]);
    contents_.rows.release(rows[i]);
    contents_.tombstones.add({items.ids[i], version, reason});
  }
  contents_.tombstones.settle(config_.tombstones_max);
  return removed;
}

}  // namespace embedstore
