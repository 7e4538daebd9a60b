#include "native/rows.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "native/huge_pages.h"

namespace embedstore {
namespace {

constexpr size_t kFirstBytes = size_t{8} << 10;  // and at most kFirstRows
constexpr size_t kFirstRows = 4;
constexpr uint32_t kAhead = 4;  // rows fetched before they are moved

// Few rows: each slab costs a pointer and, at a lookup, the cache line that holds it. Many: each chunk leaves half a
// slab unused. 61 rows of 276 bytes leave 2 bytes a row in chunks of 4096 rows, and need 5 KB of pointers in chunks of
// 40,000. But at least a page.
size_t slab_rows_for(size_t row_bytes) noexcept {
  size_t rows = (kPageBytes + row_bytes - 1) / row_bytes;
  while ((rows + 1) * (rows + 1) * row_bytes < size_t{1} << 20) ++rows;
  return rows;
}

}  // namespace

RowLayout::RowLayout(uint32_t dim_, uint32_t state_floats_, RowType stored_) noexcept
    : dim(dim_),
      state_floats(state_floats_),
      stored(stored_),
      embedding_bytes((packed_bytes(stored_, dim_) + 3) & ~size_t{3}),
      row_bytes(sizeof(RowHeader) + embedding_bytes + sizeof(float) * state_floats_),
      slab_rows(static_cast<uint32_t>(slab_rows_for(row_bytes))),
      slab_bytes(slab_rows * row_bytes) {
  // The factor is 2^shift / slab_rows rounded up by less than 1, which adds less than row / 2^shift to the quotient:
  // under 1 / slab_rows for every row below 2^31, so no quotient reaches the next whole number.
  slab_shift = 32;
  while (slab_rows >> (slab_shift - 31) != 0) ++slab_shift;
  slab_factor = ((uint64_t{1} << slab_shift) + slab_rows - 1) / slab_rows;
}

Rows::~Rows() { free_slabs(0); }

void Rows::swap(Rows& other) noexcept {
  std::swap(layout_, other.layout_);
  std::swap(pool_, other.pool_);
  std::swap(origins_, other.origins_);
  std::swap(versions_, other.versions_);
  std::swap(free_, other.free_);
  std::swap(capacity_, other.capacity_);
  std::swap(end_, other.end_);
  std::swap(size_, other.size_);
}

size_t Rows::memory_bytes() const noexcept {
  const size_t slabs =
      capacity_ < layout_->slab_rows ? capacity_ * layout_->row_bytes : origins_.size() * layout_->slab_bytes;
  return slabs + versions_.memory_bytes() + free_.memory_bytes() + origins_.capacity() * sizeof(uintptr_t);
}

// What is allocated for so many rows.
size_t Rows::capacity_for(size_t rows) const noexcept {
  const size_t whole = layout_->slab_rows;
  if (rows == 0) return 0;
  size_t capacity = std::clamp(kFirstBytes / layout_->row_bytes, size_t{1}, kFirstRows);
  while (capacity < rows && capacity < whole) capacity *= 2;
  return capacity < whole ? capacity : (rows + whole - 1) / whole * whole;
}

void Rows::reserve(size_t more) {
  const size_t free_rows = end_ - size_;
  const size_t needed = end_ + (more > free_rows ? more - free_rows : 0);
  if (needed > RowLayout::kRowsMax) throw std::bad_alloc();
  versions_.reserve(needed);
  free_.reserve(needed);
  if (needed > capacity_) grow(needed);
}

void Rows::grow(size_t needed) {
  const size_t whole = layout_->slab_rows;
  const size_t wanted = capacity_for(needed);
  if (capacity_ < whole) move_first_slab(std::min(wanted, whole));
  const size_t slabs = wanted / whole;
  if (slabs > origins_.capacity()) origins_.reserve(std::max(slabs, origins_.size() + origins_.size() / 8 + 4));
  while (capacity_ < wanted) {
    origins_.push_back(origin_of(pool_->allocate(), origins_.size()));
    capacity_ += whole;
  }
}

// To memory for `capacity` rows, at most a whole slab's, of which only the first slab may be in use.
void Rows::move_first_slab(size_t capacity) {
  const bool whole = capacity == layout_->slab_rows;
  origins_.reserve(1);
  void* slab = whole ? pool_->allocate() : ::operator new(capacity * layout_->row_bytes);
  if (end_ != 0) std::memcpy(slab, slab_at(0), end_ * layout_->row_bytes);
  free_slabs(0);
  origins_.push_back(origin_of(slab, 0));
  capacity_ = capacity;
}

void Rows::free_slabs(size_t from) noexcept {
  const bool small = capacity_ < layout_->slab_rows;
  while (origins_.size() > from) {
    void* slab = slab_at(origins_.size() - 1);
    small ? ::operator delete(slab) : pool_->release(slab);
    origins_.pop_back();
  }
  if (capacity_ > from * layout_->slab_rows) capacity_ = from * layout_->slab_rows;
}

uint32_t Rows::allocate(uint64_t id) noexcept {
  uint32_t row = end_;
  if (size_ == end_) {
    ++end_;
  } else {
    row = free_.lowest();
    free_.remove(row);
  }
  ++size_;
  header(row).set_id(id);
  return row;
}

void Rows::release(uint32_t row) noexcept {
  versions_.clear(row);
  free_.add(row);
  --size_;
  if (row + 1 == end_) end_ = free_.drop_tail(end_);
}

bool Rows::sparse() const noexcept {
  return size_ == 0 ? capacity_ != 0 : capacity_for(size_t{size_} + size_ / 3) < capacity_;
}

Rows::Move Rows::compact_one() noexcept {
  if (size_ == end_) return {kNoRow, kNoRow};
  const Move move{end_ - 1, free_.lowest()};
  free_.remove(move.to);
  if (move.from > kAhead) prefetch<0>(move.from - kAhead, layout_->row_bytes);
  if (const uint32_t next = free_.lowest(); next < move.from) prefetch<1>(next, layout_->row_bytes);
  std::memcpy(at(move.to), at(move.from), layout_->row_bytes);
  versions_.move(move.from, move.to);
  end_ = free_.drop_tail(move.from);
  return move;
}

void Rows::trim() noexcept {
  const size_t wanted = capacity_for(end_);
  if (wanted >= layout_->slab_rows || wanted == 0) {
    free_slabs(wanted / layout_->slab_rows);
  } else if (wanted < capacity_) {
    free_slabs(1);
    try {
      move_first_slab(wanted);
    } catch (const std::bad_alloc&) {
      // It stays where it is, in more memory than it needs.
    }
  }
  versions_.trim(end_);
  free_.trim(end_);
  if (origins_.capacity() >= 2 * origins_.size()) origins_.shrink_to_fit();
}

}  // namespace embedstore
