// A set of numbers below a limit that gives its lowest member first: which rows or slabs are free.
//
// One bit a number, and two levels above it with a bit for every word that is not empty below; only the topmost, one
// bit for 4096 numbers, is searched word by word. Invariant: a bit of an upper level is set exactly when its word below
// is not zero. The memory of all members is there from reserve() on, so that adding never fails. Not synchronised.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace embedstore {

class FreeSet {
 public:
  static constexpr uint32_t kNone = 0xFFFFFFFF;

  size_t memory_bytes() const noexcept;

  // Makes room for the numbers below `limit`. Throws std::bad_alloc, and no member changes then.
  void reserve(size_t limit);
  // Gives back what only numbers from `limit` on need; none of them may be a member.
  void trim(size_t limit) noexcept;

  bool contains(uint32_t number) const noexcept { return (levels_[0][number / 64] >> (number % 64) & 1) != 0; }
  // `number` is below the limit and no member.
  void add(uint32_t number) noexcept;
  // `number` is a member.
  void remove(uint32_t number) noexcept;
  // kNone when the set is empty.
  uint32_t lowest() const noexcept;
  // Removes all members directly below `end`: the numbers end - 1, end - 2 and so on. Returns the new end.
  uint32_t drop_tail(uint32_t end) noexcept;

 private:
  static constexpr unsigned kLevels = 3;
  void clear_word(size_t word) noexcept;

  std::array<std::vector<uint64_t>, kLevels> levels_;
};

}  // namespace embedstore
