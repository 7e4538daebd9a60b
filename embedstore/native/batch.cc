#include "native/batch.h"

#include <algorithm>

#include "native/hash.h"

namespace embedstore {
namespace {

// The caller's array may be written to by another of its threads meanwhile. Then any of its values may be meant, but an
// id that was hashed as one and stored as another would be in a place where it is not found again.
uint64_t load_once(const uint64_t* id) noexcept { return __atomic_load_n(id, __ATOMIC_RELAXED); }

}  // namespace

void Partition::build(const uint64_t* ids, const uint64_t* hashes, size_t count, unsigned chunk_bits) {
  groups_.clear();
  if (count == 0) return;
  uint64_t* input = input_hashes_.sized(count);
  for (size_t i = 0; i < count; ++i) input[i] = hashes != nullptr ? hashes[i] : mix64(ids[i]);
  ids_.sized(count);
  hashes_.sized(count);
  sources_.sized(count);
  if (count < (size_t{1} << chunk_bits) / 8) {
    sort_few(ids, count, chunk_bits);
  } else {
    sort_many(ids, count, chunk_bits);
  }
}

// A comparison sort: no work for the chunks that get nothing.
void Partition::sort_few(const uint64_t* ids, size_t count, unsigned chunk_bits) {
  keys_.resize(count);
  for (size_t i = 0; i < count; ++i) keys_[i] = uint64_t{chunk_of(input_hashes_[i], chunk_bits)} << 32 | i;
  std::sort(keys_.begin(), keys_.end());
  for (size_t i = 0; i < count; ++i) {
    const auto source = static_cast<uint32_t>(keys_[i]);
    const auto chunk = static_cast<uint32_t>(keys_[i] >> 32);
    ids_[i] = ids[source];
    hashes_[i] = input_hashes_[source];
    sources_[i] = source;
    const auto at = static_cast<uint32_t>(i);
    if (groups_.empty() || groups_.back().chunk != chunk) groups_.push_back({chunk, at, at});
    groups_.back().end = at + 1;
  }
}

// A counting sort.
void Partition::sort_many(const uint64_t* ids, size_t count, unsigned chunk_bits) {
  const size_t num_chunks = size_t{1} << chunk_bits;
  bounds_.assign(num_chunks + 1, 0);
  for (size_t i = 0; i < count; ++i) ++bounds_[chunk_of(input_hashes_[i], chunk_bits) + 1];
  for (size_t c = 0; c < num_chunks; ++c) {
    if (bounds_[c + 1] != 0) groups_.push_back({static_cast<uint32_t>(c), bounds_[c], bounds_[c] + bounds_[c + 1]});
    bounds_[c + 1] += bounds_[c];
  }
  for (size_t i = 0; i < count; ++i) {
    const uint32_t at = bounds_[chunk_of(input_hashes_[i], chunk_bits)]++;
    ids_[at] = ids[i];
    hashes_[at] = input_hashes_[i];
    sources_[at] = static_cast<uint32_t>(i);
  }
}

size_t count_repeats(const uint64_t* ids, size_t count) {
  thread_local Scratch<uint32_t> scratch;
  size_t capacity = 16;
  while (capacity < count * 2) capacity *= 2;
  uint32_t* slots = scratch.sized(capacity);
  std::fill_n(slots, capacity, Distinct::kEnd);
  size_t repeats = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t id = load_once(ids + i);
    size_t slot = mix64(id) & (capacity - 1);
    while (slots[slot] != Distinct::kEnd && load_once(ids + slots[slot]) != id) slot = (slot + 1) & (capacity - 1);
    if (slots[slot] == Distinct::kEnd) {
      slots[slot] = static_cast<uint32_t>(i);
    } else {
      ++repeats;
    }
  }
  return repeats;
}

void Distinct::build(const uint64_t* ids, size_t count) {
  size_ = 0;
  ids_.sized(count);
  hashes_.sized(count);
  firsts_.sized(count);
  lasts_.sized(count);
  nexts_.sized(count);
  distinct_.sized(count);
  size_t capacity = 16;
  while (capacity < count * 2) capacity *= 2;
  uint32_t* slots = slots_.sized(capacity);
  std::fill_n(slots, capacity, kEnd);
  for (size_t i = 0; i < count; ++i) {
    const auto at = static_cast<uint32_t>(i);
    const uint64_t id = load_once(ids + i);
    const uint64_t hash = mix64(id);
    size_t slot = hash & (capacity - 1);
    while (slots[slot] != kEnd && ids_[slots[slot]] != id) slot = (slot + 1) & (capacity - 1);
    nexts_[i] = kEnd;
    if (slots[slot] == kEnd) {
      const auto u = static_cast<uint32_t>(size_++);
      slots[slot] = u;
      ids_[u] = id;
      hashes_[u] = hash;
      firsts_[u] = at;
      lasts_[u] = at;
      distinct_[i] = u;
    } else {
      const uint32_t u = slots[slot];
      nexts_[lasts_[u]] = at;
      lasts_[u] = at;
      distinct_[i] = u;
    }
  }
}

void split_by_shard(const uint64_t* ids, size_t count, uint32_t num_chunks, uint32_t num_shards, int64_t* order,
                    int64_t* bounds) {
  const unsigned chunk_bits = log2_of(num_chunks);
  std::vector<uint32_t> shards(count);
  std::fill_n(bounds, size_t{num_shards} + 1, 0);
  for (size_t i = 0; i < count; ++i) {
    shards[i] = shard_of(chunk_of(mix64(ids[i]), chunk_bits), num_chunks, num_shards);
    ++bounds[shards[i] + 1];
  }
  for (size_t s = 0; s < num_shards; ++s) bounds[s + 1] += bounds[s];
  std::vector<int64_t> next(bounds, bounds + num_shards);
  for (size_t i = 0; i < count; ++i) order[next[shards[i]]++] = static_cast<int64_t>(i);
}

}  // namespace embedstore
