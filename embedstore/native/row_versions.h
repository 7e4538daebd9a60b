// The version that last changed each row of one chunk, apart from the rows, so that a delta finds changed rows without
// touching them.
//
// Kept as 32-bit distances from a base; 0 marks a row that is not in use. When a distance would not fit, the base moves
// up and rows older than it count as changed at the base: they may be sent once more, never missed. The distances lie
// in blocks of 256 rows, so that growing moves none of them; only the first block starts smaller and doubles by moving.
// Invariant: rows beyond those ever set are 0. Not synchronised: the chunk's lock protects it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace embedstore {

class RowVersions {
 public:
  size_t memory_bytes() const noexcept;

  // Makes room for the rows below `end`. Throws std::bad_alloc, and no version changes then.
  void reserve(size_t end);
  // Gives back what only rows from `end` on need; none of them may be in use.
  void trim(size_t end) noexcept;

  // What get() and set() of a row touch, to fetch it ahead.
  const void* line(uint32_t row) const noexcept { return &distance(row); }
  bool in_use(uint32_t row) const noexcept { return distance(row) != 0; }
  uint64_t get(uint32_t row) const noexcept { return base_ + distance(row); }
  // `version` is at most the last one given to set_newest().
  void set(uint32_t row, uint64_t version) noexcept {
    distance(row) = version > base_ ? static_cast<uint32_t>(version - base_) : 1;
  }
  void clear(uint32_t row) noexcept { distance(row) = 0; }
  void move(uint32_t from, uint32_t to) noexcept {
    distance(to) = distance(from);
    distance(from) = 0;
  }
  void set_newest(uint64_t version) noexcept;
  // Appends the numbers of all rows in use whose version is above `version`.
  void changed_since(uint64_t version, std::vector<uint32_t>& out) const;

 private:
  static constexpr uint32_t kBlockRows = 256;
  using Block = std::unique_ptr<uint32_t[]>;

  const uint32_t& distance(uint32_t row) const noexcept { return blocks_[row / kBlockRows][row % kBlockRows]; }
  uint32_t& distance(uint32_t row) noexcept { return blocks_[row / kBlockRows][row % kBlockRows]; }
  size_t rows_of(size_t block) const noexcept { return block == 0 ? first_rows_ : kBlockRows; }
  void grow_first_block(size_t rows);

  std::vector<Block> blocks_;
  uint64_t base_ = 0;
  size_t first_rows_ = 0;  // in the first block
};

}  // namespace embedstore
