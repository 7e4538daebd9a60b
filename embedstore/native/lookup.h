// Finding the rows of many ids, over several chunks at once.
//
// Memory latency is what a look-up costs, so the work is software-pipelined: while the rows of one block of ids are
// used, those of the next two are on their way, and the buckets of the one after them. Blocks run on from one chunk to
// the next, so that a chunk with few ids does not drain the pipeline.
//
// Whoever looks up holds the locks of all chunks involved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "native/batch.h"
#include "native/index.h"
#include "native/rows.h"

namespace embedstore {

class Chunk;

// One chunk's share of a batch; `contents` of the chunk and `items` outlive the look-up.
struct Part {
  Chunk* chunk;
  const Index* index;
  const Rows* rows;
  Items items;
};

// Items of one block.
inline constexpr size_t kLookupBlock = 8;

// One stage's way through the items, a block at a time. each(part, begin, end) is called for the part of a block that
// lies in one chunk.
struct LookupPass {
  const Part* part;
  size_t part_end;
  size_t total;
  size_t at = 0;

  template <class Each>
  void block(Each each) {
    const size_t end = total - at < kLookupBlock ? total : at + kLookupBlock;
    while (at < end) {
      while (at == part_end) part_end += (++part)->items.count;
      const size_t stop = end < part_end ? end : part_end;
      each(*part, at, stop);
      at = stop;
    }
  }
};

// Calls visit(part, i, row, header) for every item of every part in order, row kNoRow and header null when there is
// none, with the first `prefetch_bytes` of each row on their way into the cache (for writing when kWrite). hint(i) is
// called some items ahead of the visit. The items of the parts follow each other in memory; i counts them from the
// first part's on.
template <int kWrite, class Hint, class Visit>
void look_up(std::span<const Part> parts, size_t prefetch_bytes, Hint hint, Visit visit) {
  while (!parts.empty() && parts.front().items.count == 0) parts = parts.subspan(1);
  if (parts.empty()) return;
  const uint64_t* hashes = parts.front().items.hashes;
  const uint64_t* ids = parts.front().items.ids;
  size_t total = 0;
  for (const Part& part : parts) total += part.items.count;

  constexpr size_t kRing = 4 * kLookupBlock;
  struct Found {
    uint32_t row;
    const RowHeader* header;
  } ring[kRing];
  const LookupPass start{&parts.front(), parts.front().items.count, total};
  LookupPass enter = start;
  LookupPass probe = start;
  LookupPass partner = start;
  LookupPass use = start;
  const auto fetch = [prefetch_bytes](const Part& part, uint32_t row) -> Found {
    const RowHeader* header = &part.rows->header(row);
    Rows::prefetch<kWrite>(header, prefetch_bytes);
    return {row, header};
  };

  const Part* entered = nullptr;
  for (size_t begin = 0; begin < total + 3 * kLookupBlock; begin += kLookupBlock) {
    enter.block([&](const Part& part, size_t i, size_t end) {
      const Index& index = *part.index;
      if (&part != entered) {
        entered = &part;
        part.rows->prefetch_origins();
      }
      for (; i < end; ++i) index.prefetch(hashes[i]);
    });
    if (begin < kLookupBlock) continue;
    probe.block([&](const Part& part, size_t i, size_t end) {
      const Index& index = *part.index;
      for (; i < end; ++i) {
        hint(i);
        const uint32_t row = index.candidate(hashes[i]);
        if (row != kNoRow) [[likely]] {
          ring[i % kRing] = fetch(part, row);
        } else {
          ring[i % kRing] = {kNoRow, nullptr};
          index.prefetch_partner(hashes[i]);
        }
      }
    });
    if (begin < 2 * kLookupBlock) continue;
    partner.block([&](const Part& part, size_t i, size_t end) {
      for (; i < end; ++i) {
        if (ring[i % kRing].row != kNoRow) continue;
        const uint32_t row = part.index->candidate_in_partner(hashes[i]);
        if (row != kNoRow) ring[i % kRing] = fetch(part, row);
      }
    });
    if (begin < 3 * kLookupBlock) continue;
    use.block([&](const Part& part, size_t i, size_t end) {
      for (; i < end; ++i) {
        Found found = ring[i % kRing];
        if (found.row == kNoRow || found.header->id() != ids[i]) [[unlikely]] {
          const auto same = [&](uint32_t r) { return part.rows->header(r).id() == ids[i]; };
          found.row = found.row == kNoRow ? part.index->find_in_stash(hashes[i]) : part.index->find(hashes[i], same);
          found.header = found.row == kNoRow ? nullptr : &part.rows->header(found.row);
        }
        visit(part, i, found.row, found.header);
      }
    });
  }
}

}  // namespace embedstore
