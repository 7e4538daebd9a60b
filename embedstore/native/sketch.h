// How often a chunk has met ids that have no row yet: a sized map from a 32-bit fingerprint of an id to a 32-bit count.
//
// The fingerprint is the low half of the id's hash, which has none of the bits that chose the chunk. Two ids of a chunk
// share one with probability 2^-32, and then count as one: an id can be admitted early that way, never late.
//
// Invariants
// - A slot is (fingerprint, count); count 0 marks an empty one. The number of slots is 0 or a power of two from 64 up
// to
//   what `bytes_max` allows (a map of 64 slots is always allowed); at most 3/4 are used.
// - A fingerprint occurs once, and is found by linear probing from its low bits without crossing an empty slot: removal
//   shifts later entries back.
// - When a new fingerprint finds 3/4 of the slots used, the map doubles. At its largest, all counts are halved instead
// and
//   those that become 0 are dropped, and again while more than half of the slots are used. Only this makes counts too
//   low.
// - Counts saturate at 2^32 - 1.
// - Each block of 64 slots has the version that last changed it, so that a delta carries changed blocks alone. A
// doubling
//   or a halving changes every block.
// - The state is a function of the sequence of add() and remove(), on every machine; reserve() changes none of it.
//
// Not synchronised: the chunk's lock protects it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace embedstore {

class Sketch {
 public:
  static constexpr uint32_t kBlockSlots = 64;
  struct Slot {
    uint32_t fingerprint = 0;
    uint32_t count = 0;
  };
  static constexpr size_t kBytesMin = kBlockSlots * sizeof(Slot);

  // 0: it can hold nothing.
  explicit Sketch(size_t bytes_max) noexcept;

  uint32_t size() const noexcept { return size_; }
  uint32_t num_slots() const noexcept { return static_cast<uint32_t>(slots_.size()); }
  uint32_t slots_max() const noexcept { return slots_max_; }
  uint64_t halvings() const noexcept { return halvings_; }
  // The last version that changed it; 0: none.
  uint64_t version() const noexcept { return version_; }
  size_t memory_bytes() const noexcept;

  void prefetch(uint64_t hash) const noexcept {
    if (!slots_.empty()) __builtin_prefetch(&slots_[home(static_cast<uint32_t>(hash))]);
  }
  // 0 when it is not there.
  uint32_t count(uint64_t hash) const noexcept;

  // Makes room for add() of `more` new ids. Throws std::bad_alloc; what the sketch holds stays the same in any case.
  void reserve(size_t more);
  // After reserve(), and with bytes_max above 0. Counts `occurrences` (above 0); returns the count after it.
  uint32_t add(uint64_t hash, uint32_t occurrences, uint64_t version) noexcept;
  void remove(uint64_t hash, uint64_t version) noexcept;

  // --- for deltas
  uint32_t num_blocks() const noexcept { return num_slots() / kBlockSlots; }
  const Slot* block(uint32_t block) const noexcept { return slots_.data() + size_t{block} * kBlockSlots; }
  // Appends, ascending, the blocks that changed after `version`; with 0 those that hold something.
  void changed_since(uint64_t version, std::vector<uint32_t>& out) const;

  // Receiving works on a copy that is thrown away if finish() says no. begin() empties it, unless it has as many slots
  // already and `keep`; `num_slots` is 64 or more, a power of two, and at most slots_max(). Throws std::bad_alloc.
  void begin(uint32_t num_slots, bool keep);
  // The slots of a block, to be overwritten.
  Slot* open_block(uint32_t block, uint64_t version) noexcept;
  // Counts what is there. False when an entry cannot be found from its place, occurs twice, or there are too many.
  bool finish(uint64_t halvings, uint64_t version);

 private:
  uint32_t mask() const noexcept { return num_slots() - 1; }
  uint32_t home(uint32_t fingerprint) const noexcept { return fingerprint & mask(); }
  uint32_t next(uint32_t slot) const noexcept { return (slot + 1) & mask(); }
  // Where the fingerprint is, or the empty slot at which the search for it ended.
  uint32_t find(uint32_t fingerprint) const noexcept;
  bool full_with(size_t entries) const noexcept { return entries * 4 > slots_.size() * 3; }
  void grow(uint64_t version) noexcept;
  void halve(uint64_t version) noexcept;
  // Empties the slot and closes the gap. `touched(slot)` is told every slot that changes.
  template <class Touched>
  void erase_slot(uint32_t slot, Touched touched) noexcept;
  void touch(uint32_t slot, uint64_t version) noexcept {
    block_versions_[slot / kBlockSlots] = version;
    version_ = version;
  }
  bool each_is_found() const noexcept;
  bool any_twice() const;

  std::vector<Slot> slots_;
  std::vector<uint64_t> block_versions_;
  std::vector<Slot> spare_;  // room to grow, prepared by reserve()
  uint32_t slots_max_ = 0;
  uint32_t size_ = 0;
  uint64_t version_ = 0;
  uint64_t halvings_ = 0;
};

}  // namespace embedstore
