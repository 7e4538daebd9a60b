// Where the buckets of an index lie, and how their number grows.
#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "native/index.h"

namespace embedstore {
namespace {

constexpr size_t kBucketsMax = size_t{1} << 29;

constexpr uint32_t block_buckets(unsigned octave) noexcept {
  return std::min(uint32_t{1} << (octave - 3), Index::kBlockBucketsMax);
}

uintptr_t base_of(const Bucket* block, uint32_t first) noexcept {
  return reinterpret_cast<uintptr_t>(block) - uintptr_t{first} * sizeof(Bucket);
}

Bucket* block_of(uintptr_t base, uint32_t first) noexcept {
  return reinterpret_cast<Bucket*>(base + uintptr_t{first} * sizeof(Bucket));
}

// The place bits that an entry has in this bucket, from either of its places: `lowest` is the lowest bit of both the
// bucket's number and of every place in it.
uint16_t place_bits(uint16_t tag, uint16_t home, uint16_t lowest) noexcept {
  const auto away = static_cast<uint16_t>(0 - ((home ^ lowest) & 1));
  return static_cast<uint16_t>(home ^ (away & partner_of(0, tag)));
}

}  // namespace

alignas(64) const Bucket Index::kNoBucket{};
const uintptr_t Index::kNoDirectory[1] = {reinterpret_cast<uintptr_t>(&Index::kNoBucket)};

Index::~Index() {
  for_each_block([this](Bucket* block, uint32_t, uint32_t buckets) { release_block(block, buckets); });
}

size_t Index::num_buckets() const noexcept {
  if (entries_ == nullptr) return 0;
  return (size_t{1} << octave_) + (single_ ? 0 : size_t{steps_} * block_buckets(octave_));
}

size_t Index::memory_bytes() const noexcept {
  const size_t entries = entries_ == nullptr ? 0 : (places_mask_ >> shift_) + size_t{1};
  return num_buckets() * sizeof(Bucket) + entries * sizeof(uintptr_t) + stash_.memory_bytes();
}

size_t Index::buckets_for(size_t entries, unsigned load_percent) noexcept {
  const size_t least = (entries * 100 + Bucket::kSlots * load_percent - 1) / (Bucket::kSlots * load_percent);
  if (least <= kSingleBlockBuckets * 2) return std::max(std::bit_ceil(least), size_t{2});
  const size_t block = block_buckets(static_cast<unsigned>(std::bit_width(least)) - 1);
  return (least + block - 1) / block * block;
}

Bucket* Index::allocate_block(uint32_t buckets) const {
  const size_t bytes = buckets * sizeof(Bucket);
  if (pool_ != nullptr && !single_) return static_cast<Bucket*>(pool_->allocate(bytes));
  return static_cast<Bucket*>(::operator new(bytes, std::align_val_t{alignof(Bucket)}));
}

void Index::release_block(Bucket* block, uint32_t buckets) const noexcept {
  if (pool_ != nullptr && !single_) {
    pool_->release(block, buckets * sizeof(Bucket));
  } else {
    ::operator delete(block, std::align_val_t{alignof(Bucket)});
  }
}

// Calls visit(number of the first bucket, number of buckets) for each block.
template <class Visit>
void Index::for_each_range(Visit visit) const {
  const uint32_t old_buckets = uint32_t{1} << octave_;
  if (single_) return visit(0, old_buckets);
  const uint32_t old_block = block_buckets(octave_ - 1u);
  const uint32_t block = block_buckets(octave_);
  for (uint32_t first = 0; first < old_buckets; first += block) {
    const bool split = steps_ != 0 && step_of(first / block) < steps_;
    for (uint32_t at = first; at < first + block; at += split ? block : old_block) visit(at, split ? block : old_block);
    if (split) visit(old_buckets + first, block);
  }
}

// Calls visit(block, number of its first bucket, number of its buckets).
template <class Visit>
void Index::for_each_block(Visit visit) const {
  if (entries_ == nullptr) return;
  for_each_range(
      [&](uint32_t first, uint32_t buckets) { visit(block_of(entries_[first >> shift_], first), first, buckets); });
}

// The octave's steps take the ranges of old buckets alternately from both halves: what two steps in a row make is then
// given back by two in a row of the next octave.
uint32_t Index::step_of(uint32_t range) const noexcept {
  const uint32_t half = (uint32_t{1} << octave_) / block_buckets(octave_) / 2;
  return range < half ? 2 * range : 2 * (range - half) + 1;
}

uint32_t Index::range_of(uint32_t step) const noexcept {
  const uint32_t half = (uint32_t{1} << octave_) / block_buckets(octave_) / 2;
  return step / 2 + (step % 2) * half;
}

void Index::name(Bucket* block, uint32_t first, uint32_t buckets) noexcept {
  const uintptr_t base = base_of(block, first);
  for (uint32_t e = first >> shift_; e < (first + buckets) >> shift_; ++e) entries_[e] = base;
}

// The index has no buckets before.
void Index::allocate(size_t buckets) {
  if (buckets > kBucketsMax) throw std::bad_alloc();
  single_ = buckets <= kSingleBlockBuckets;
  octave_ = static_cast<uint8_t>(std::bit_width(buckets) - 1);
  const uint32_t old_buckets = uint32_t{1} << octave_;
  steps_ = single_ ? 0 : (static_cast<uint32_t>(buckets) - old_buckets) / block_buckets(octave_);
  shift_ = static_cast<uint8_t>(single_ ? octave_ : std::countr_zero(block_buckets(octave_ - 1u)));
  const uint32_t places = steps_ == 0 ? old_buckets : 2 * old_buckets;

  std::vector<std::pair<Bucket*, uint32_t>> made;
  std::unique_ptr<uintptr_t[]> entries;
  try {
    entries = std::make_unique<uintptr_t[]>(places >> shift_);
    for_each_range([&](uint32_t, uint32_t count) {
      made.reserve(made.size() + 1);
      made.emplace_back(allocate_block(count), count);
      std::memset(static_cast<void*>(made.back().first), 0, count * sizeof(Bucket));
    });
  } catch (const std::bad_alloc&) {
    for (const auto& [block, count] : made) release_block(block, count);
    throw;
  }
  entries_ = std::move(entries);
  directory_ = entries_.get();
  places_mask_ = places - 1;
  size_t next = 0;
  for_each_range([&](uint32_t first, uint32_t count) {
    Bucket* block = made[next++].first;
    name(block, first, count);
    if (first + old_buckets < places) name(block, first + old_buckets, count);
  });
}

// The upper half of the new directory names the buckets of its lower half.
void Index::open_octave() {
  const uint32_t old_buckets = uint32_t{1} << octave_;
  if (places_mask_ >= old_buckets) return;
  const auto shift = static_cast<uint8_t>(std::countr_zero(block_buckets(octave_ - 1u)));
  auto entries = std::make_unique<uintptr_t[]>(2 * old_buckets >> shift);
  for (uint32_t e = 0; e < old_buckets >> shift; ++e) {
    const uint32_t first = e << shift;
    Bucket* block = block_of(entries_[first >> shift_], first);
    entries[e] = base_of(block, first);
    entries[e + (old_buckets >> shift)] = base_of(block, first + old_buckets);
  }
  shift_ = shift;
  entries_ = std::move(entries);
  directory_ = entries_.get();
  places_mask_ = 2 * old_buckets - 1;
}

void Index::step(const RowHashes& rows) {
  const uint32_t old_buckets = uint32_t{1} << octave_;
  const uint32_t block = block_buckets(octave_);
  const uint32_t old_block = block_buckets(octave_ - 1u);
  if (old_buckets * size_t{2} > kBucketsMax) throw std::bad_alloc();
  open_octave();
  const uint32_t first = range_of(steps_) * block;
  Bucket* high = allocate_block(block);
  Bucket* low = block_of(entries_[first >> shift_], first);
  if (block != old_block) {
    try {
      low = allocate_block(block);
    } catch (const std::bad_alloc&) {
      release_block(high, block);
      throw;
    }
  }
  for (uint32_t at = first; at < first + block; at += old_block) {
    Bucket* old = block_of(entries_[at >> shift_], at);
    for (uint32_t b = 0; b < old_block; ++b) split(old[b], at + b, low[at - first + b], high[at - first + b], rows);
    if (block != old_block) release_block(old, old_block);
  }
  name(low, first, block);
  name(high, old_buckets + first, block);
  if (++steps_ < old_buckets / block) return;
  ++octave_;
  steps_ = 0;
}

// Entries whose place has the octave's bit go to `high`, the others to `low`, which may be `from`; all keep their slot.
void Index::split(const Bucket& from, uint32_t number, Bucket& low, Bucket& high,
                  const RowHashes& rows) const noexcept {
  uint16_t up[Bucket::kSlots];  // all bits set when the entry goes to `high`
  if (octave_ < 16) {
    const auto bit = static_cast<uint16_t>(1u << octave_);
    for (unsigned s = 0; s < Bucket::kSlots; ++s) {
      const uint16_t place = place_bits(from.tags[s], from.homes[s], static_cast<uint16_t>(number));
      up[s] = static_cast<uint16_t>(0 - ((place & bit) != 0));
    }
  } else {
    for (unsigned s = 0; s < Bucket::kSlots; ++s) {
      up[s] = 0;
      if (from.tags[s] == 0) continue;
      const uint32_t home = place_of(rows.hash_of(from.rows[s]));
      const uint32_t place = ((home ^ number) & 1) == 0 ? home : partner_of(home, from.tags[s]);
      up[s] = static_cast<uint16_t>(0 - ((place >> octave_) & 1));
    }
  }
  high = from;
  low = from;
  for (unsigned s = 0; s < Bucket::kSlots; ++s) {
    high.tags[s] &= up[s];
    low.tags[s] &= static_cast<uint16_t>(~up[s]);
  }
}

void Index::rebuild(size_t buckets, const RowHashes& rows) {
  Index other(pool_);
  other.allocate(buckets);
  const bool known = other.places_mask_ <= 0xFFFF;
  for_each_block([&](const Bucket* block, uint32_t, uint32_t count) {
    for (const Bucket* b = block; b < block + count; ++b) {
      for (unsigned s = 0; s < Bucket::kSlots; ++s) {
        if (b->tags[s] == 0) continue;
        const uint32_t place = known ? b->homes[s] : place_of(rows.hash_of(b->rows[s]));
        if (!other.place(place, b->tags[s], b->rows[s], rows)) other.stash(rows.hash_of(b->rows[s]), b->rows[s]);
      }
    }
  });
  stash_.for_each([&](uint64_t hash, uint64_t value) { other.stash(hash, static_cast<uint32_t>(value - 1)); });
  other.unstash(rows);
  other.size_ = size_;
  other.early_ = early_;
  swap(other);
}

}  // namespace embedstore
