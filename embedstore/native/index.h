// From an id to its row number inside one chunk: bucketized cuckoo hashing with partial keys (Fan, Andersen, Kaminsky,
// "MemC3", NSDI 2013; breadth-first insertion after Li et al., "Algorithmic Improvements for Fast Concurrent Cuckoo
// Hashing", EuroSys 2014) that grows in small steps as linear hashing does (Litwin, VLDB 1980).
//
// Invariants
// - A bucket is one cache line of eight slots: a 16-bit tag (0: empty), the low 16 bits of the entry's place, and the
//   row number.
// - An entry lies in the bucket of its place or of its partner place, or, when neither could take it, in the stash. The
//   stash holds more than a few only if many ids share both buckets, which takes chosen ids: correct, but slower.
// - Both places of an entry differ in their lowest bit, and a bucket only has places of equal lowest bit. So the place
//   bits in a slot tell whether the entry lies at its place or at its partner place.
// - The index never compares ids; a match is a candidate, and the caller compares the id kept in the row.
// - At most kLoadPercentMax of the slots are used.
//
// Buckets lie in blocks, and a directory says where: entry e serves the places whose low bits are from e << shift up,
// and holds the address that its bucket 0 would have. Up to 64 buckets are one block, and double. From then on an
// octave (from 2^k to 2^(k+1) buckets) is passed in steps. It begins with a directory over 2^(k+1) places whose upper
// half names the same buckets as its lower half; a step takes a range of old buckets, splits each by bit k of its
// entries' places, and so gives a range of the upper half buckets of its own. Places in a range not yet split have
// twice the density of the others; the choice of two buckets evens that out. Blocks have a power of two of buckets, an
// eighth of 2^k and at most kBlockBucketsMax, so a step has a bounded cost at any size. Below that bound, a step also
// moves what stays into one block of the new size; blocks that were made together are given back one step apart, so
// that the pool can join them again.
//
// The bits that a step needs are in the slots up to 65536 buckets. Beyond that the hash of each row is asked for, and
// also by an insert that has to displace an entry into a range where only the hash knows the bucket.
//
// Not synchronised: the chunk's lock protects it. Entries are never more than 2^32 - 1 (row numbers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "native/buddy_pool.h"
#include "native/flat_map.h"
#include "native/hash.h"
#include "native/prefetch.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace embedstore {

inline constexpr uint32_t kNoRow = 0xFFFFFFFF;

struct alignas(64) Bucket {
  static constexpr unsigned kSlots = 8;
  uint16_t tags[kSlots];
  uint16_t homes[kSlots];
  uint32_t rows[kSlots];

  // Bit s is set when slot s holds this tag and these place bits.
  unsigned match(uint16_t tag, uint16_t home) const noexcept {
#if defined(__SSE2__)
    const __m128i t = _mm_cmpeq_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(tags)),
                                      _mm_set1_epi16(static_cast<int16_t>(tag)));
    const __m128i h = _mm_cmpeq_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(homes)),
                                      _mm_set1_epi16(static_cast<int16_t>(home)));
    return static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(_mm_and_si128(t, h), _mm_setzero_si128())));
#elif defined(__aarch64__)
    const uint16x8_t both =
        vandq_u16(vceqq_u16(vld1q_u16(tags), vdupq_n_u16(tag)), vceqq_u16(vld1q_u16(homes), vdupq_n_u16(home)));
    return neon_mask(both);
#else
    return match_portable(tag, home);
#endif
  }

  // Bit s is set when slot s is empty.
  unsigned empty() const noexcept {
#if defined(__SSE2__)
    const __m128i t = _mm_cmpeq_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(tags)), _mm_setzero_si128());
    return static_cast<unsigned>(_mm_movemask_epi8(_mm_packs_epi16(t, _mm_setzero_si128())));
#elif defined(__aarch64__)
    return neon_mask(vceqq_u16(vld1q_u16(tags), vdupq_n_u16(0)));
#else
    return empty_portable();
#endif
  }

  // The same for any machine; what the vector forms are tested against.
  unsigned match_portable(uint16_t tag, uint16_t home) const noexcept {
    unsigned mask = 0;
    for (unsigned s = 0; s < kSlots; ++s) mask |= unsigned{tags[s] == tag && homes[s] == home} << s;
    return mask;
  }
  unsigned empty_portable() const noexcept {
    unsigned mask = 0;
    for (unsigned s = 0; s < kSlots; ++s) mask |= unsigned{tags[s] == 0} << s;
    return mask;
  }

#if defined(__aarch64__)
  static unsigned neon_mask(uint16x8_t lanes) noexcept {
    static constexpr uint8_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vaddv_u8(vand_u8(vmovn_u16(lanes), vld1_u8(kBits)));
  }
#endif
};
static_assert(sizeof(Bucket) == 64);

// Gives the hash of the id in a row; asked only by an index of more than 65536 buckets, and for the stash.
struct RowHashes {
  virtual uint64_t hash_of(uint32_t row) const noexcept = 0;

 protected:
  ~RowHashes() = default;
};

class Index {
 public:
  // Of the slots. The load at which it grows trades memory against lookups that need the second bucket.
  static constexpr unsigned kLoadPercentMax = 75;
  // Chunks fill alike. Each grows up to this much earlier, as its first hash says, so that they do not step together.
  static constexpr unsigned kLoadPercentSpread = 8;
  static constexpr uint32_t kSingleBlockBuckets = 64;
  static constexpr uint32_t kBlockBucketsMax = 2048;

  // Without a pool the buckets come from operator new.
  explicit Index(BuddyPool* pool = nullptr) noexcept : pool_(pool) {}
  ~Index();
  Index(Index&& other) noexcept { swap(other); }
  Index& operator=(Index&& other) noexcept {
    Index taken(std::move(other));
    swap(taken);
    return *this;
  }

  size_t size() const noexcept { return size_; }
  size_t memory_bytes() const noexcept;

  // The two buckets of a hash, to fetch them ahead.
  const Bucket* first_bucket(uint64_t hash) const noexcept { return at(place_of(hash)); }
  const Bucket* partner_bucket(uint64_t hash) const noexcept { return at(partner_of(place_of(hash), tag_of(hash))); }
  void prefetch(uint64_t hash) const noexcept { prefetch_line(at(place_of(hash))); }
  void prefetch_partner(uint64_t hash) const noexcept { prefetch_line(at(partner_of(place_of(hash), tag_of(hash)))); }

  // The first candidate in the entry's first (or partner) bucket, kNoRow if there is none.
  uint32_t candidate(uint64_t hash) const noexcept { return candidate_in(place_of(hash), hash); }
  uint32_t candidate_in_partner(uint64_t hash) const noexcept {
    return candidate_in(partner_of(place_of(hash), tag_of(hash)), hash);
  }

  // The row for which same(row) holds among all candidates, kNoRow if there is none.
  template <class Same>
  uint32_t find(uint64_t hash, Same same) const noexcept {
    const uint16_t tag = tag_of(hash);
    const uint32_t place = place_of(hash);
    for (const uint32_t p : {place, partner_of(place, tag)}) {
      const Bucket& b = *at(p);
      for (unsigned m = b.match(tag, static_cast<uint16_t>(place)); m != 0; m &= m - 1) {
        const uint32_t row = b.rows[__builtin_ctz(m)];
        if (same(row)) return row;
      }
    }
    return find_in_stash(hash);
  }

  uint32_t find_in_stash(uint64_t hash) const noexcept {
    return stash_.empty() ? kNoRow : static_cast<uint32_t>(stash_.get(hash) - 1);
  }

  // Makes room for `more` entries. Throws std::bad_alloc, and no entry changes then.
  void reserve(size_t more, const RowHashes& rows);
  // The hash must not be present. Throws std::bad_alloc, and no entry changes then.
  void insert(uint64_t hash, uint32_t row, const RowHashes& rows);
  // The entry must be present.
  void erase(uint64_t hash, uint32_t row) noexcept;
  // The entry, which must be present, names another row from now on.
  void update(uint64_t hash, uint32_t from, uint32_t to) noexcept;
  // Gives memory back when less than 0.35 of the slots are used, or the stash is far too large. Throws std::bad_alloc,
  // and is unchanged then.
  void shrink(const RowHashes& rows);

 private:
  struct Slot {
    Bucket* bucket;  // null: in the stash
    int at;
  };

  struct Elsewhere {
    Bucket* bucket;
    uint32_t place;
  };

  Bucket* at(uint32_t place) const noexcept {
    const uint32_t low = place & places_mask_;
    return reinterpret_cast<Bucket*>(directory_[low >> shift_] + uintptr_t{low} * sizeof(Bucket));
  }
  uint32_t candidate_in(uint32_t place, uint64_t hash) const noexcept {
    const Bucket& b = *at(place);
    const unsigned m = b.match(tag_of(hash), static_cast<uint16_t>(place_of(hash)));
    return m == 0 ? kNoRow : b.rows[__builtin_ctz(m)];
  }
  Slot slot_of(uint64_t hash, uint32_t row) const noexcept;
  void swap(Index& other) noexcept;

  // --- blocks (index_blocks.cc)
  size_t num_buckets() const noexcept;
  static size_t buckets_for(size_t entries, unsigned load_percent) noexcept;
  Bucket* allocate_block(uint32_t buckets) const;
  void release_block(Bucket* block, uint32_t buckets) const noexcept;
  template <class Visit>
  void for_each_range(Visit visit) const;
  template <class Visit>
  void for_each_block(Visit visit) const;
  uint32_t step_of(uint32_t range) const noexcept;
  uint32_t range_of(uint32_t step) const noexcept;
  void name(Bucket* block, uint32_t first, uint32_t buckets) noexcept;
  void allocate(size_t buckets);
  void open_octave();
  void step(const RowHashes& rows);
  void split(const Bucket& from, uint32_t number, Bucket& low, Bucket& high, const RowHashes& rows) const noexcept;
  void rebuild(size_t buckets, const RowHashes& rows);

  void grow(const RowHashes& rows);
  void stash(uint64_t hash, uint32_t row);
  void unstash(const RowHashes& rows) noexcept;
  bool place(uint32_t place, uint16_t tag, uint32_t row, const RowHashes& rows) noexcept;
  Elsewhere elsewhere(uint32_t place, const Bucket& bucket, unsigned slot, const RowHashes& rows) const noexcept;
  Bucket* displace(uint32_t first, uint32_t second, const RowHashes& rows) noexcept;

  static const Bucket kNoBucket;
  static const uintptr_t kNoDirectory[1];

  // What a lookup reads comes first.
  const uintptr_t* directory_ = kNoDirectory;
  uint32_t places_mask_ = 0;
  uint8_t shift_ = 0;
  uint8_t octave_ = 0;  // k: there are 2^k buckets and those of `steps_` steps
  uint8_t early_ = 0;   // below kLoadPercentSpread
  bool single_ = true;  // one block, or none
  uint32_t steps_ = 0;
  FlatMap stash_;  // by hash, which is a bijection of the id; value: row + 1
  size_t size_ = 0;
  std::unique_ptr<uintptr_t[]> entries_;
  BuddyPool* pool_ = nullptr;
};

}  // namespace embedstore
