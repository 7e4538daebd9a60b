#include "native/index.h"

#include <cstring>
#include <new>
#include <utility>

namespace embedstore {
namespace {

constexpr size_t kFirstBuckets = 2;
constexpr size_t kLoadPercentMax = 85;
// Below this load a failed search means chosen ids: doubling would not help.
constexpr size_t kLoadPercentToDouble = 50;
constexpr size_t kLoadPercentToShrink = 35;
constexpr size_t kLoadPercentShrunk = 75;
constexpr size_t kBucketsMax = size_t{1} << 29;
// Buckets that one breadth-first search looks at: at 0.85 it hardly ever needs more than twenty.
constexpr size_t kSearchMax = 400;

}  // namespace

Index::~Index() {
  if (buckets_ == nullptr) return;
  const size_t bytes = num_buckets() * sizeof(Bucket);
  if (pool_ == nullptr || bytes < BuddyPool::kBlockBytesMin) {
    ::operator delete(buckets_, std::align_val_t{alignof(Bucket)});
  } else if (bytes <= BuddyPool::kBlockBytesMax) {
    pool_->release(buckets_, bytes);
  } else {
    unmap_huge(buckets_, bytes);
  }
}

void Index::swap(Index& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(buckets_, other.buckets_);
  std::swap(mask_, other.mask_);
  std::swap(size_, other.size_);
  std::swap(stash_, other.stash_);
}

void Index::allocate(size_t buckets) {
  if (buckets > kBucketsMax) throw std::bad_alloc();
  const size_t bytes = buckets * sizeof(Bucket);
  void* memory = pool_ == nullptr || bytes < BuddyPool::kBlockBytesMin
                     ? ::operator new(bytes, std::align_val_t{alignof(Bucket)})
                 : bytes <= BuddyPool::kBlockBytesMax ? pool_->allocate(bytes)
                                                      : map_huge(bytes);
  std::memset(memory, 0, bytes);
  buckets_ = static_cast<Bucket*>(memory);
  mask_ = static_cast<uint32_t>(buckets - 1);
}

void Index::reserve(size_t more, const RowHashes& rows) {
  size_t buckets = buckets_ ? num_buckets() : kFirstBuckets;
  while ((size_ + more) * 100 > buckets * Bucket::kSlots * kLoadPercentMax) buckets *= 2;
  if (buckets != num_buckets() && more != 0) rebuild(buckets, rows);
}

void Index::rebuild(size_t buckets, const RowHashes& rows) {
  Index larger(pool_);
  larger.allocate(buckets);
  const bool known = buckets <= 0x10000;
  for (size_t b = 0; b < num_buckets(); ++b) {
    const Bucket& bucket = buckets_[b];
    for (unsigned s = 0; s < Bucket::kSlots; ++s) {
      if (bucket.tags[s] == 0) continue;
      const uint32_t row = bucket.rows[s];
      const uint32_t place = known ? bucket.homes[s] : place_of(rows.hash_of(row));
      if (!larger.place(place, bucket.tags[s], row)) larger.stash(rows.hash_of(row), row);
    }
  }
  stash_.for_each([&](uint64_t hash, uint64_t value) {
    const auto row = static_cast<uint32_t>(value - 1);
    if (!larger.place(place_of(hash), tag_of(hash), row)) larger.stash(hash, row);
  });
  larger.size_ = size_;
  swap(larger);
}

void Index::shrink(const RowHashes& rows) {
  if (size_ * 100 >= num_buckets() * Bucket::kSlots * kLoadPercentToShrink) return;
  if (size_ == 0) {
    Index none(pool_);
    swap(none);
    return;
  }
  size_t buckets = kFirstBuckets;
  while (size_ * 100 > buckets * Bucket::kSlots * kLoadPercentShrunk) buckets *= 2;
  if (buckets < num_buckets()) rebuild(buckets, rows);
}

void Index::stash(uint64_t hash, uint32_t row) {
  stash_.reserve(1);
  stash_.set(hash, uint64_t{row} + 1);
}

void Index::insert(uint64_t hash, uint32_t row, const RowHashes& rows) {
  reserve(1, rows);
  if (!place(place_of(hash), tag_of(hash), row)) {
    if (size_ * 100 >= num_buckets() * Bucket::kSlots * kLoadPercentToDouble) rebuild(num_buckets() * 2, rows);
    if (!place(place_of(hash), tag_of(hash), row)) stash(hash, row);
  }
  ++size_;
}

Index::Slot Index::slot_of(uint64_t hash, uint32_t row) const noexcept {
  if (!buckets_) return {nullptr, 0};
  const uint16_t tag = tag_of(hash);
  const uint32_t place = place_of(hash);
  for (const uint32_t b : {place & mask_, partner_of(place, tag) & mask_}) {
    for (unsigned m = buckets_[b].match(tag, static_cast<uint16_t>(place)); m != 0; m &= m - 1) {
      const int slot = __builtin_ctz(m);
      if (buckets_[b].rows[slot] == row) return {&buckets_[b], slot};
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

bool Index::put(uint32_t bucket, uint16_t tag, uint16_t home, uint32_t row) noexcept {
  Bucket& b = buckets_[bucket];
  const unsigned free = b.empty();
  if (free == 0) return false;
  const int slot = __builtin_ctz(free);
  b.tags[slot] = tag;
  b.homes[slot] = home;
  b.rows[slot] = row;
  return true;
}

bool Index::place(uint32_t place, uint16_t tag, uint32_t row) noexcept {
  const auto home = static_cast<uint16_t>(place);
  const uint32_t first = place & mask_;
  const uint32_t second = partner_of(place, tag) & mask_;
  if (put(first, tag, home, row) || put(second, tag, home, row)) return true;
  uint32_t freed;
  return displace(first, second, &freed) && put(freed, tag, home, row);
}

// Frees a slot in one of two full buckets by moving entries to their partners along the shortest path. A shortest path
// passes no bucket twice, so each entry is still where the search saw it when its turn comes.
bool Index::displace(uint32_t first, uint32_t second, uint32_t* freed) noexcept {
  struct Node {
    uint32_t bucket;
    int16_t parent;
    uint8_t slot;  // of the parent's bucket: the entry that would come here
  };
  Node nodes[kSearchMax];
  size_t count = 0;
  nodes[count++] = {first, -1, 0};
  if (second != first) nodes[count++] = {second, -1, 0};

  for (size_t head = 0; head < count; ++head) {
    const uint32_t from = nodes[head].bucket;
    for (unsigned s = 0; s < Bucket::kSlots; ++s) {
      const uint32_t to = partner_of(from, buckets_[from].tags[s]) & mask_;
      if (buckets_[to].empty() == 0) {
        if (count < kSearchMax) nodes[count++] = {to, static_cast<int16_t>(head), static_cast<uint8_t>(s)};
        continue;
      }
      uint32_t target = to;
      auto slot = static_cast<uint8_t>(s);
      for (auto at = static_cast<int16_t>(head); at >= 0;) {
        Bucket& source = buckets_[nodes[at].bucket];
        put(target, source.tags[slot], source.homes[slot], source.rows[slot]);
        source.tags[slot] = 0;
        target = nodes[at].bucket;
        slot = nodes[at].slot;
        at = nodes[at].parent;
      }
      *freed = target;
      return true;
    }
  }
  return false;
}

}  // namespace embedstore
