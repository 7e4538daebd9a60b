// From an id to its row number inside one chunk: bucketized cuckoo hashing with partial keys (Fan, Andersen, Kaminsky,
// "MemC3", NSDI 2013; breadth-first insertion after Li et al., "Algorithmic Improvements for Fast Concurrent Cuckoo
// Hashing", EuroSys 2014).
//
// Invariants
// - A bucket is one cache line of eight slots: a 16-bit tag (0: empty), the low 16 bits of the entry's place, and the
//   row number. The number of buckets is 0 or a power of two.
// - An entry lies in bucket `place & mask` or in its partner, or, when neither could take it, in the stash. The stash
//   holds something only if more ids share both buckets than fit there, which takes chosen ids: correct, but slower.
// - The index never compares ids; a match is a candidate, and the caller compares the id kept in the row.
// - At most 0.85 of the slots are used; the table of buckets doubles before that. Doubling reads no row up to 65536
//   buckets, because tag and place bits say where an entry goes; beyond that it asks for the hash of each row.
//
// Not synchronised: the chunk's lock protects it. Entries are never more than 2^32 - 1 (row numbers).
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/buddy_pool.h"
#include "native/flat_map.h"
#include "native/hash.h"

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
    unsigned mask = 0;
    for (unsigned s = 0; s < kSlots; ++s) mask |= unsigned{tags[s] == tag && homes[s] == home} << s;
    return mask;
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
    unsigned mask = 0;
    for (unsigned s = 0; s < kSlots; ++s) mask |= unsigned{tags[s] == 0} << s;
    return mask;
#endif
  }

#if defined(__aarch64__)
  static unsigned neon_mask(uint16x8_t lanes) noexcept {
    static constexpr uint8_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vaddv_u8(vand_u8(vmovn_u16(lanes), vld1_u8(kBits)));
  }
#endif
};
static_assert(sizeof(Bucket) == 64);

// Gives the hash of the id in a row; asked only while the index doubles beyond 65536 buckets.
struct RowHashes {
  virtual uint64_t hash_of(uint32_t row) const noexcept = 0;

 protected:
  ~RowHashes() = default;
};

class Index {
 public:
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
  size_t memory_bytes() const noexcept { return num_buckets() * sizeof(Bucket) + stash_.memory_bytes(); }

  void prefetch(uint64_t hash) const noexcept {
    if (buckets_) __builtin_prefetch(&buckets_[place_of(hash) & mask_]);
  }
  void prefetch_partner(uint64_t hash) const noexcept {
    if (buckets_) __builtin_prefetch(&buckets_[partner_of(place_of(hash), tag_of(hash)) & mask_]);
  }

  // The first candidate in the entry's first (or partner) bucket, kNoRow if there is none.
  uint32_t candidate(uint64_t hash) const noexcept { return candidate_in(place_of(hash), hash); }
  uint32_t candidate_in_partner(uint64_t hash) const noexcept {
    return candidate_in(partner_of(place_of(hash), tag_of(hash)), hash);
  }

  // The row for which same(row) holds among all candidates, kNoRow if there is none.
  template <class Same>
  uint32_t find(uint64_t hash, Same same) const noexcept {
    if (!buckets_) return kNoRow;
    const uint16_t tag = tag_of(hash);
    const uint32_t place = place_of(hash);
    for (const uint32_t b : {place & mask_, partner_of(place, tag) & mask_}) {
      for (unsigned m = buckets_[b].match(tag, static_cast<uint16_t>(place)); m != 0; m &= m - 1) {
        const uint32_t row = buckets_[b].rows[__builtin_ctz(m)];
        if (same(row)) return row;
      }
    }
    return find_in_stash(hash);
  }

  uint32_t find_in_stash(uint64_t hash) const noexcept {
    return stash_.empty() ? kNoRow : static_cast<uint32_t>(stash_.get(hash) - 1);
  }

  // Makes room for `more` entries at load 0.85. Throws std::bad_alloc, and is unchanged then.
  void reserve(size_t more, const RowHashes& rows);
  // The hash must not be present. Throws std::bad_alloc, and is unchanged then.
  void insert(uint64_t hash, uint32_t row, const RowHashes& rows);
  // The entry must be present.
  void erase(uint64_t hash, uint32_t row) noexcept;
  // The entry, which must be present, names another row from now on.
  void update(uint64_t hash, uint32_t from, uint32_t to) noexcept;
  // Gives memory back when less than 0.35 of the slots are used. Throws std::bad_alloc, and is unchanged then.
  void shrink(const RowHashes& rows);

 private:
  size_t num_buckets() const noexcept { return buckets_ ? size_t{mask_} + 1 : 0; }
  uint32_t candidate_in(uint32_t bucket, uint64_t hash) const noexcept {
    if (!buckets_) return kNoRow;
    const Bucket& b = buckets_[bucket & mask_];
    const unsigned m = b.match(tag_of(hash), static_cast<uint16_t>(place_of(hash)));
    return m == 0 ? kNoRow : b.rows[__builtin_ctz(m)];
  }
  struct Slot {
    Bucket* bucket;  // null: in the stash
    int at;
  };
  Slot slot_of(uint64_t hash, uint32_t row) const noexcept;
  void swap(Index& other) noexcept;
  void allocate(size_t buckets);
  void rebuild(size_t buckets, const RowHashes& rows);
  void stash(uint64_t hash, uint32_t row);
  bool place(uint32_t place, uint16_t tag, uint32_t row) noexcept;
  bool put(uint32_t bucket, uint16_t tag, uint16_t home, uint32_t row) noexcept;
  bool displace(uint32_t first, uint32_t second, uint32_t* freed) noexcept;

  BuddyPool* pool_ = nullptr;
  Bucket* buckets_ = nullptr;
  uint32_t mask_ = 0;
  size_t size_ = 0;
  FlatMap stash_;  // by hash, which is a bijection of the id; value: row + 1
};

}  // namespace embedstore
