// Where an id belongs. One 64-bit hash, a bijection of the id, is cut into three parts that do not overlap:
//
//   bits 63..48  chunk (its top log2(num_chunks) bits)
//   bits 47..16  place: the first bucket inside the chunk's index is its low bits
//   bits 15..0   tag: what a bucket keeps of the id
//
// Pure functions, callable from any thread. Part of the formats: changing them moves every row to another chunk.
#pragma once

#include <cstdint>

namespace embedstore {

// The finalizer of splitmix64 (Steele, Lea, Flood 2014, with Stafford's constants, variant 13).
constexpr uint64_t mix64(uint64_t x) noexcept {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9u;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBu;
  x ^= x >> 31;
  return x;
}

constexpr uint32_t chunk_of(uint64_t hash, unsigned chunk_bits) noexcept {
  return chunk_bits == 0 ? 0 : static_cast<uint32_t>(hash >> (64 - chunk_bits));
}

constexpr uint32_t place_of(uint64_t hash) noexcept { return static_cast<uint32_t>(hash >> 16); }

// Never 0, which marks an empty slot.
constexpr uint16_t tag_of(uint64_t hash) noexcept {
  const auto tag = static_cast<uint16_t>(hash);
  return tag == 0 ? 1 : tag;
}

// The other bucket of an entry, from either one and the tag: an involution. Bit 0 always changes, so the two differ as
// soon as there are two buckets. The caller masks the result.
constexpr uint32_t partner_of(uint32_t bucket, uint16_t tag) noexcept { return bucket ^ ((tag * 0x9E3779B1u) | 1u); }

constexpr unsigned log2_of(uint32_t power_of_two) noexcept {
  unsigned bits = 0;
  while ((1u << bits) < power_of_two) ++bits;
  return bits;
}

// Shard i of n owns chunks [i*C/n, (i+1)*C/n); this is the i of a chunk.
constexpr uint32_t shard_of(uint32_t chunk, uint32_t num_chunks, uint32_t num_shards) noexcept {
  return static_cast<uint32_t>(((static_cast<uint64_t>(chunk) + 1) * num_shards - 1) / num_chunks);
}

}  // namespace embedstore
