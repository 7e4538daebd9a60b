// A small open-addressed map from 64-bit keys to nonzero 64-bit values, for sets that are normally small or empty.
//
// Invariants: the capacity is 0 or a power of two and at most 3/4 full; an entry with value 0 is empty; every key is
// found by linear probing from mix64(key) without crossing an empty entry (erase shifts later entries back).
// Any key is allowed. Not synchronised: the owner's lock protects it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "native/hash.h"

namespace embedstore {

class FlatMap {
 public:
  size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  size_t memory_bytes() const noexcept { return entries_.capacity() * sizeof(Entry); }

  // Makes room for `more` new keys: set() then does not allocate. Throws std::bad_alloc, and is unchanged then.
  void reserve(size_t more) {
    size_t capacity = entries_.empty() ? 16 : entries_.size();
    while ((size_ + more) * 4 > capacity * 3) capacity *= 2;
    if (capacity == entries_.size() || more == 0) return;
    FlatMap larger;
    larger.entries_.resize(capacity);
    for (const Entry& entry : entries_)
      if (entry.value != 0) larger.set(entry.key, entry.value);
    *this = std::move(larger);
  }

  // Gives memory back when most of it is not needed; keeps it when there is none for the smaller map.
  void shrink() noexcept {
    if (entries_.size() <= 64 || size_ * 8 > entries_.size()) return;
    try {
      FlatMap smaller;
      smaller.reserve(std::max<size_t>(size_ * 2, 16));
      for (const Entry& entry : entries_)
        if (entry.value != 0) smaller.set(entry.key, entry.value);
      *this = std::move(smaller);
    } catch (const std::bad_alloc&) {
      return;
    }
  }

  // 0 when absent.
  uint64_t get(uint64_t key) const noexcept {
    if (size_ == 0) return 0;
    for (size_t i = home(key);; i = next(i)) {
      if (entries_[i].value == 0) return 0;
      if (entries_[i].key == key) return entries_[i].value;
    }
  }

  // After reserve(). `value` is not 0.
  void set(uint64_t key, uint64_t value) noexcept {
    size_t i = home(key);
    while (entries_[i].value != 0 && entries_[i].key != key) i = next(i);
    size_ += entries_[i].value == 0;
    entries_[i] = {key, value};
  }

  bool erase(uint64_t key) noexcept {
    if (size_ == 0) return false;
    size_t i = home(key);
    while (entries_[i].key != key || entries_[i].value == 0) {
      if (entries_[i].value == 0) return false;
      i = next(i);
    }
    for (size_t j = next(i); entries_[j].value != 0; j = next(j)) {
      const size_t distance = (j - home(entries_[j].key)) & (entries_.size() - 1);
      if (distance >= ((j - i) & (entries_.size() - 1))) {
        entries_[i] = entries_[j];
        i = j;
      }
    }
    entries_[i].value = 0;
    --size_;
    return true;
  }

  template <class Visit>
  void for_each(Visit visit) const {
    for (const Entry& entry : entries_)
      if (entry.value != 0) visit(entry.key, entry.value);
  }

 private:
  struct Entry {
    uint64_t key = 0;
    uint64_t value = 0;
  };

  size_t home(uint64_t key) const noexcept { return mix64(key) & (entries_.size() - 1); }
  size_t next(size_t i) const noexcept { return (i + 1) & (entries_.size() - 1); }

  std::vector<Entry> entries_;
  size_t size_ = 0;
};

}  // namespace embedstore
