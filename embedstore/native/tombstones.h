// The ids that a chunk removed, with the version and the reason, so that deltas can say so.
//
// Invariants: an id has at most one tombstone, and none while it has a row. The log lists removals by ascending
// version; an entry whose id meanwhile got another tombstone or a row again is stale and is skipped. At most
// `tombstones_max` are kept: dropping the oldest raises the horizon to its version, and a cursor below the horizon can
// no longer be served by a delta, only by the full chunk. Not synchronised: the chunk's lock protects it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "native/flat_map.h"

namespace embedstore {

enum class Reason : uint8_t { kErased = 1, kExpired = 2, kEvicted = 3 };

struct Tombstone {
  uint64_t id;
  uint64_t version;  // below 2^56
  Reason reason;
};

class Tombstones {
 public:
  size_t size() const noexcept { return current_.size(); }
  uint64_t horizon() const noexcept { return horizon_; }
  size_t memory_bytes() const noexcept { return current_.memory_bytes() + log_.capacity() * sizeof(Entry); }

  // A full chunk knows of no removals before its version.
  void reset(uint64_t horizon) noexcept;
  // Makes room for `more`. Throws std::bad_alloc, and no tombstone changes then.
  void reserve(size_t more);
  // After reserve().
  void add(const Tombstone& tombstone) noexcept;
  void remove(uint64_t id) noexcept {
    if (!current_.empty()) current_.erase(id);
  }
  // After a batch of add(): restores order and bound.
  void settle(size_t tombstones_max) noexcept;
  // Appends all with a version above `version`, oldest first.
  void since(uint64_t version, std::vector<Tombstone>& out) const;

 private:
  struct Entry {
    uint64_t id;
    uint64_t version;
  };
  bool stale(const Entry& entry) const noexcept { return current_.get(entry.id) >> 8 != entry.version; }

  FlatMap current_;  // id -> version << 8 | reason
  std::vector<Entry> log_;
  uint64_t horizon_ = 0;
};

}  // namespace embedstore
