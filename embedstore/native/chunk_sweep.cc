#include <algorithm>
#include <tuple>

#include "native/chunk.h"

// What takes rows away without being asked for them by id: expiry, capacity, and the memory that both leave behind.

namespace embedstore {
namespace {

constexpr size_t kAhead = 16;
// An eviction goes this far below the capacity, so that the next pushes need none.
constexpr uint32_t kSlackShift = 4;

uint32_t target_of(uint32_t rows_max) noexcept { return rows_max - (rows_max >> kSlackShift); }

}  // namespace

void Chunk::reserve_removals(size_t removals, size_t more, WriteScratch& scratch) {
  const size_t rows = contents_.rows.size() + more;
  if (rows > limits.rows_max) {
    scratch.candidates.clear();
    scratch.candidates.reserve(rows);
    removals += rows - target_of(limits.rows_max);
  }
  if (removals != 0) contents_.tombstones.reserve(removals);
}

uint32_t Chunk::evict(WriteScratch& scratch, Changes& changes) noexcept {
  const Rows& rows = contents_.rows;
  auto& candidates = scratch.candidates;
  if (rows.size() <= limits.rows_max) return 0;
  for (uint32_t row = 0; row < rows.end(); ++row) {
    if (!rows.in_use(row)) continue;
    const RowHeader& header = rows.header(row);
    candidates.push_back({header.last_seen_s, row, rows.version(row), header.id()});
  }
  const auto num_evicted = rows.size() - target_of(limits.rows_max);
  const auto older = [](const WriteScratch::Candidate& a, const WriteScratch::Candidate& b) {
    return std::tie(a.last_seen_s, a.version, a.id) < std::tie(b.last_seen_s, b.version, b.id);
  };
  std::nth_element(candidates.begin(), candidates.begin() + num_evicted, candidates.end(), older);
  for (uint32_t i = 0; i < num_evicted; ++i)
    remove(candidates[i].id, mix64(candidates[i].id), candidates[i].row, Reason::kEvicted);
  changes.evicted += num_evicted;
  candidates.clear();
  return num_evicted;
}

size_t Chunk::sweep(size_t rows_max, uint32_t* row, WriteScratch& scratch, Changes& changes) {
  Rows& rows = contents_.rows;
  const uint32_t alive_since = alive_since_s();
  const uint32_t begin = std::min(*row, rows.end());
  const auto end = static_cast<uint32_t>(std::min<uint64_t>(uint64_t{begin} + rows_max, rows.end()));
  std::vector<uint32_t> expired;
  for (uint32_t r = begin; r < end && alive_since != 0; ++r) {
    if (uint64_t{r} + kAhead < end && rows.in_use(r + kAhead)) rows.prefetch<0>(r + kAhead, sizeof(RowHeader));
    if (rows.in_use(r) && rows.header(r).last_seen_s < alive_since) expired.push_back(r);
  }
  reserve_removals(expired.size(), 0, scratch);
  *row = end;
  if ((expired.empty() && rows.size() <= limits.rows_max) || version >= kVersionMax) return end - begin;

  rows.set_newest(++version);
  for (const uint32_t r : expired) {
    const uint64_t id = rows.header(r).id();
    remove(id, mix64(id), r, Reason::kExpired);
  }
  changes.expired += expired.size();
  evict(scratch, changes);
  settle_removals();
  return end - begin;
}

uint64_t Chunk::count_expired(int64_t at_clock_ms) const noexcept {
  const Rows& rows = contents_.rows;
  const uint32_t alive_since = alive_since_s(at_clock_ms);
  uint64_t expired = 0;
  for (uint32_t r = 0; r < rows.end() && alive_since != 0; ++r)
    expired += rows.in_use(r) && rows.header(r).last_seen_s < alive_since;
  return expired;
}

size_t Chunk::compact(size_t moves_max) {
  Rows& rows = contents_.rows;
  size_t moves = 0;
  if (!rows.sparse()) return 0;
  for (; moves < moves_max && rows.size() != rows.end(); ++moves) {
    const Rows::Move move = rows.compact_one();
    contents_.index.update(mix64(rows.header(move.to).id()), move.from, move.to);
  }
  if (rows.size() == rows.end()) {
    rows.trim();
    contents_.index.shrink(rows);
  }
  return moves;
}

}  // namespace embedstore
