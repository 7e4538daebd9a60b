// Finding the rows of many ids, over several chunks at once.
//
// Memory latency is what a look-up costs, so the work is software-pipelined: while the rows of one block of ids are
// used, those of the next two are on their way, and the buckets of the one after them. Blocks run on from one chunk to
// the next, so that a chunk with few ids does not drain the pipeline. The first lines that a block needs are asked for
// right after each other: a prefetch holds up what follows until its page is found, and pages are looked for side by
// side only if nothing else stands between the requests.
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

// One chunk's share of a batch; what it points to outlives the look-up.
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
// none, with the first `prefetch_bytes` of each row on their way into the cache (for writing when kWrite). The
// items of the parts follow each other in memory; i counts them from the
// first part's on.
template <int kWrite, class Visit>
void look_up(std::span<const Part> parts, size_t prefetch_bytes, Visit visit) {
  while (!parts.empty() && parts.front().items.count == 0) parts = parts.subspan(1);
  if (parts.empty()) return;
  const uint64_t* hashes = parts.front().items.hashes;
  const uint64_t* ids = parts.front().items.ids;
  size_t total = 0;
  for (const Part& part : parts) total += part.items.count;

  constexpr size_t kRing = 4 * kLookupBlock;
  uint32_t rows[kRing];
  const RowHeader* headers[kRing];
  const LookupPass start{&parts.front(), parts.front().items.count, total};
  LookupPass enter = start;
  LookupPass probe = start;
  LookupPass partner = start;
  LookupPass use = start;
  const Part* entered = nullptr;
  const void* lines[kLookupBlock];
  const auto fetch = [&lines](size_t count) {
    for (size_t k = 0; k < count; ++k) prefetch_line<kWrite>(lines[k]);
  };

  for (size_t begin = 0; begin < total + 3 * kLookupBlock; begin += kLookupBlock) {
    size_t count = 0;
    enter.block([&](const Part& part, size_t i, size_t end) {
      const Index& index = *part.index;
      if (&part != entered) {
        entered = &part;
        part.rows->prefetch_origins();
      }
      for (; i < end; ++i) lines[count++] = index.first_bucket(hashes[i]);
    });
    for (size_t k = 0; k < count; ++k) prefetch_line<0>(lines[k]);
    if (begin < kLookupBlock) continue;
    count = 0;
    probe.block([&](const Part& part, size_t i, size_t end) {
      const Index& index = *part.index;
      for (; i < end; ++i) {
        const uint32_t row = index.candidate(hashes[i]);
        const RowHeader* header = row == kNoRow ? nullptr : &part.rows->header(row);
        rows[i % kRing] = row;
        headers[i % kRing] = header;
        lines[count++] = header == nullptr ? index.partner_bucket(hashes[i]) : static_cast<const void*>(header);
      }
    });
    fetch(count);
    if (begin < 2 * kLookupBlock) continue;
    const size_t first = partner.at;
    partner.block([&](const Part& part, size_t i, size_t end) {
      for (; i < end; ++i) {
        if (rows[i % kRing] != kNoRow) continue;
        const uint32_t row = part.index->candidate_in_partner(hashes[i]);
        if (row == kNoRow) continue;
        rows[i % kRing] = row;
        headers[i % kRing] = &part.rows->header(row);
      }
    });
    for (size_t i = first; i < partner.at; ++i)
      if (const RowHeader* header = headers[i % kRing]; header != nullptr)
        Rows::prefetch<kWrite>(header, prefetch_bytes);
    if (begin < 3 * kLookupBlock) continue;
    use.block([&](const Part& part, size_t i, size_t end) {
      for (; i < end; ++i) {
        uint32_t row = rows[i % kRing];
        const RowHeader* header = headers[i % kRing];
        if (header == nullptr || header->id() != ids[i]) [[unlikely]] {
          const auto same = [&](uint32_t r) { return part.rows->header(r).id() == ids[i]; };
          row = header == nullptr ? part.index->find_in_stash(hashes[i]) : part.index->find(hashes[i], same);
          header = row == kNoRow ? nullptr : &part.rows->header(row);
        }
        visit(part, i, row, header);
      }
    });
  }
}

}  // namespace embedstore
