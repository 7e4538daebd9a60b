#include "native/free_set.h"

namespace embedstore {

size_t FreeSet::memory_bytes() const noexcept {
  size_t words = 0;
  for (const auto& level : levels_) words += level.capacity();
  return words * sizeof(uint64_t);
}

void FreeSet::reserve(size_t limit) {
  for (auto& level : levels_) {
    limit = (limit + 63) / 64;
    if (level.size() < limit) level.resize(limit, 0);
  }
}

void FreeSet::trim(size_t limit) noexcept {
  for (auto& level : levels_) {
    limit = (limit + 63) / 64;
    if (level.size() <= limit) continue;
    level.resize(limit);
    if (level.capacity() >= 2 * level.size()) level.shrink_to_fit();
  }
}

void FreeSet::add(uint32_t number) noexcept {
  for (auto& level : levels_) {
    uint64_t& word = level[number / 64];
    const bool known_above = word != 0;
    word |= uint64_t{1} << (number % 64);
    if (known_above) return;
    number /= 64;
  }
}

void FreeSet::remove(uint32_t number) noexcept {
  for (auto& level : levels_) {
    uint64_t& word = level[number / 64];
    word &= ~(uint64_t{1} << (number % 64));
    if (word != 0) return;
    number /= 64;
  }
}

uint32_t FreeSet::lowest() const noexcept {
  const auto& top = levels_[kLevels - 1];
  for (size_t word = 0; word < top.size(); ++word) {
    if (top[word] == 0) continue;
    size_t number = word;
    for (unsigned level = kLevels; level-- > 0;)
      number = number * 64 + static_cast<unsigned>(__builtin_ctzll(levels_[level][number]));
    return static_cast<uint32_t>(number);
  }
  return kNone;
}

uint32_t FreeSet::drop_tail(uint32_t end) noexcept {
  while (end > 0) {
    if (end % 64 == 0 && levels_[0][end / 64 - 1] == ~uint64_t{0}) {
      clear_word(end / 64 - 1);
      end -= 64;
    } else if (contains(end - 1)) {
      remove(--end);
    } else {
      break;
    }
  }
  return end;
}

void FreeSet::clear_word(size_t word) noexcept {
  levels_[0][word] = 0;
  auto number = static_cast<uint32_t>(word);
  for (unsigned level = 1; level < kLevels; ++level) {
    uint64_t& above = levels_[level][number / 64];
    above &= ~(uint64_t{1} << (number % 64));
    if (above != 0) return;
    number /= 64;
  }
}

}  // namespace embedstore
