#include "native/index.h"

#include <algorithm>
#include <new>
#include <utility>

namespace embedstore {
namespace {

constexpr unsigned kLoadPercentToShrink = 35;
constexpr unsigned kLoadPercentShrunk = 66;
// Buckets that one breadth-first search looks at: it hardly ever needs more than twenty.
constexpr size_t kSearchMax = 400;
// Entries of the stash that a step of growth tries again.
constexpr size_t kUnstashMax = 16;

bool put(Bucket& bucket, uint16_t tag, uint16_t home, uint32_t row) noexcept {
  const unsigned free = bucket.empty();
  if (free == 0) return false;
  const int slot = __builtin_ctz(free);
  bucket.tags[slot] = tag;
  bucket.homes[slot] = home;
  bucket.rows[slot] = row;
  return true;
}

}  // namespace

void Index::swap(Index& other) noexcept {
  std::swap(directory_, other.directory_);
  std::swap(places_mask_, other.places_mask_);
  std::swap(shift_, other.shift_);
  std::swap(octave_, other.octave_);
  std::swap(early_, other.early_);
  std::swap(single_, other.single_);
  std::swap(steps_, other.steps_);
  std::swap(stash_, other.stash_);
  std::swap(size_, other.size_);
  std::swap(entries_, other.entries_);
  std::swap(pool_, other.pool_);
}

void Index::reserve(size_t more, const RowHashes& rows) {
  if (more == 0) return;
  if (entries_ == nullptr) allocate(buckets_for(size_ + more, kLoadPercentMax));
  while ((size_ - stash_.size() + more) * 100 > num_buckets() * Bucket::kSlots * (kLoadPercentMax - early_)) grow(rows);
}

void Index::grow(const RowHashes& rows) {
  if (single_) {
    rebuild(num_buckets() * 2, rows);
  } else {
    step(rows);
    unstash(rows);
  }
}

void Index::shrink(const RowHashes& rows) {
  const size_t in_buckets = size_ - stash_.size();
  const bool sparse = in_buckets * 100 < num_buckets() * Bucket::kSlots * kLoadPercentToShrink;
  const bool sparse_stash = stash_.memory_bytes() > 1024 + 128 * stash_.size();
  if (!sparse && !sparse_stash) return;
  if (size_ == 0) {
    Index none(pool_);
    swap(none);
    return;
  }
  const size_t buckets = std::min(num_buckets(), sparse ? buckets_for(in_buckets, kLoadPercentShrunk) : num_buckets());
  if (buckets < num_buckets() || sparse_stash) rebuild(buckets, rows);
}

void Index::stash(uint64_t hash, uint32_t row) {
  stash_.reserve(1);
  stash_.set(hash, uint64_t{row} + 1);
}

// Few entries only: with many, ids were chosen to collide, and trying them again at every step would cost too much.
void Index::unstash(const RowHashes& rows) noexcept {
  if (stash_.empty() || stash_.size() > kUnstashMax) return;
  uint64_t hashes[kUnstashMax];
  size_t count = 0;
  stash_.for_each([&](uint64_t hash, uint64_t) { hashes[count++] = hash; });
  for (size_t i = 0; i < count; ++i) {
    const auto row = static_cast<uint32_t>(stash_.get(hashes[i]) - 1);
    if (place(place_of(hashes[i]), tag_of(hashes[i]), row, rows)) stash_.erase(hashes[i]);
  }
}

void Index::insert(uint64_t hash, uint32_t row, const RowHashes& rows) {
  if (size_ == 0) early_ = static_cast<uint8_t>((mix64(hash) >> 32) % kLoadPercentSpread);
  reserve(1, rows);
  if (!place(place_of(hash), tag_of(hash), row, rows)) stash(hash, row);
  ++size_;
}

Index::Slot Index::slot_of(uint64_t hash, uint32_t row) const noexcept {
  const uint16_t tag = tag_of(hash);
  const uint32_t place = place_of(hash);
  for (const uint32_t p : {place, partner_of(place, tag)}) {
    Bucket* bucket = at(p);
    for (unsigned m = bucket->match(tag, static_cast<uint16_t>(place)); m != 0; m &= m - 1) {
      const int slot = __builtin_ctz(m);
      if (bucket->rows[slot] == row) return {bucket, slot};
    }
  }
  return {nullptr, 0};
}

void Index::erase(uint64_t hash, uint32_t row) noexcept {
  const Slot slot = slot_of(hash, row);
  if (slot.bucket != nullptr) {
    slot.bucket->tags[slot.at] = 0;
    --size_;
  } else if (stash_.erase(hash)) {
    --size_;
  }
}

void Index::update(uint64_t hash, uint32_t from, uint32_t to) noexcept {
  const Slot slot = slot_of(hash, from);
  if (slot.bucket != nullptr) {
    slot.bucket->rows[slot.at] = to;
  } else if (stash_.get(hash) != 0) {
    stash_.set(hash, uint64_t{to} + 1);
  }
}

bool Index::place(uint32_t place, uint16_t tag, uint32_t row, const RowHashes& rows) noexcept {
  const auto home = static_cast<uint16_t>(place);
  const uint32_t partner = partner_of(place, tag);
  if (put(*at(place), tag, home, row) || put(*at(partner), tag, home, row)) return true;
  Bucket* freed = displace(place, partner, rows);
  return freed != nullptr && put(*freed, tag, home, row);
}

// The other place of the entry in a slot of the bucket of `place`, exact in the bits that choose a bucket; or kNowhere
// when only the hash knows them, and it makes no difference because all buckets in question are full.
Index::Elsewhere Index::elsewhere(uint32_t place, const Bucket& bucket, unsigned slot,
                                  const RowHashes& rows) const noexcept {
  const uint16_t tag = bucket.tags[slot];
  const uint16_t home = bucket.homes[slot];
  if (places_mask_ <= 0xFFFF) {
    const uint32_t other = ((home ^ place) & 1) == 0 ? partner_of(home, tag) : home;
    return {at(other), other};
  }
  // `place` is exact below the highest bit; that one counts only where the ranges are split.
  const uint32_t highest = (places_mask_ >> 1) + 1;
  const uint32_t other = partner_of(place, tag);
  if (at(place) != at(place ^ highest) || at(other) == at(other ^ highest)) return {at(other), other};
  if (at(other)->empty() == 0 && at(other ^ highest)->empty() == 0) return {nullptr, 0};
  const uint32_t known = place_of(rows.hash_of(bucket.rows[slot]));
  const uint32_t exact = ((known ^ place) & 1) == 0 ? partner_of(known, tag) : known;
  return {at(exact), exact};
}

// Frees a slot in one of two full buckets by moving entries to their other buckets along the shortest path. A shortest
// path passes no bucket twice, so each entry is still where the search saw it when its turn comes.
Bucket* Index::displace(uint32_t first, uint32_t second, const RowHashes& rows) noexcept {
  struct Node {
    Bucket* bucket;
    uint32_t place;
    int16_t parent;
    uint8_t slot;  // of the parent's bucket: the entry that would come here
  };
  Node nodes[kSearchMax];
  size_t count = 0;
  nodes[count++] = {at(first), first, -1, 0};
  if (at(second) != at(first)) nodes[count++] = {at(second), second, -1, 0};

  for (size_t head = 0; head < count; ++head) {
    const Node from = nodes[head];
    for (unsigned s = 0; s < Bucket::kSlots; ++s) {
      const Elsewhere to = elsewhere(from.place, *from.bucket, s, rows);
      if (to.bucket == nullptr) continue;
      if (to.bucket->empty() == 0) {
        if (count < kSearchMax) {
          nodes[count++] = {to.bucket, to.place, static_cast<int16_t>(head), static_cast<uint8_t>(s)};
        }
        continue;
      }
      Bucket* target = to.bucket;
      auto slot = static_cast<uint8_t>(s);
      for (auto at = static_cast<int16_t>(head); at >= 0;) {
        Bucket& source = *nodes[at].bucket;
        put(*target, source.tags[slot], source.homes[slot], source.rows[slot]);
        source.tags[slot] = 0;
        target = &source;
        slot = nodes[at].slot;
        at = nodes[at].parent;
      }
      return target;
    }
  }
  return nullptr;
}

}  // namespace embedstore
