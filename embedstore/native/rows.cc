#include "native/rows.h"

#include <algorithm>
#include <new>
#include <utility>

namespace embedstore {
namespace {

constexpr size_t kSlabBytesMax = size_t{64} << 10;
constexpr size_t kFirstRows = 4;

}  // namespace

RowLayout::RowLayout(uint32_t dim_, uint32_t state_floats_, RowType stored_) noexcept
    : dim(dim_),
      state_floats(state_floats_),
      stored(stored_),
      embedding_bytes((packed_bytes(stored_, dim_) + 3) & ~size_t{3}),
      row_bytes(sizeof(RowHeader) + embedding_bytes + sizeof(float) * state_floats_) {
  slab_shift = 0;
  while ((row_bytes << (slab_shift + 1)) <= kSlabBytesMax) ++slab_shift;
}

Rows::~Rows() {
  if (slabs_.empty()) return;
  if (capacity_ < slab_rows()) {
    ::operator delete(slabs_[0]);
    return;
  }
  for (std::byte* slab : slabs_) pool_->release(slab);
}

void Rows::swap(Rows& other) noexcept {
  std::swap(layout_, other.layout_);
  std::swap(pool_, other.pool_);
  std::swap(slabs_, other.slabs_);
  std::swap(distances_, other.distances_);
  std::swap(base_version_, other.base_version_);
  std::swap(capacity_, other.capacity_);
  std::swap(end_, other.end_);
  std::swap(size_, other.size_);
  std::swap(first_free_, other.first_free_);
}

size_t Rows::memory_bytes() const noexcept {
  return capacity_ * layout_->row_bytes + distances_.capacity() * sizeof(uint32_t) + slabs_.capacity() * sizeof(void*);
}

void Rows::grow_first_slab(size_t rows) {
  const bool whole = rows >= slab_rows();
  slabs_.reserve(1);
  void* slab = whole ? pool_->allocate() : ::operator new(rows * layout_->row_bytes);
  if (!slabs_.empty()) {
    std::memcpy(slab, slabs_[0], end_ * layout_->row_bytes);
    ::operator delete(slabs_[0]);
    slabs_.clear();
  }
  slabs_.push_back(static_cast<std::byte*>(slab));
  capacity_ = whole ? slab_rows() : rows;
}

void Rows::reserve(size_t more) {
  const size_t free_rows = end_ - size_;
  const size_t needed = end_ + (more > free_rows ? more - free_rows : 0);
  if (needed >= kNoRow) throw std::bad_alloc();
  if (needed > distances_.capacity()) distances_.reserve(std::max(needed, needed + needed / 8 + 8));
  if (distances_.size() < needed) distances_.resize(needed, 0);
  if (needed > capacity_ && capacity_ < slab_rows()) {
    size_t rows = std::max(capacity_, std::min(kFirstRows, slab_rows()));
    while (rows < needed && rows < slab_rows()) rows *= 2;
    grow_first_slab(rows);
  }
  while (needed > capacity_) {
    if (slabs_.size() == slabs_.capacity()) slabs_.reserve(slabs_.size() + slabs_.size() / 4 + 8);
    slabs_.push_back(static_cast<std::byte*>(pool_->allocate()));
    capacity_ += slab_rows();
  }
}

uint32_t Rows::allocate(uint64_t id) noexcept {
  uint32_t row = first_free_;
  if (row != kNoRow) {
    first_free_ = header(row).id_low;
  } else {
    row = end_++;
  }
  ++size_;
  header(row).set_id(id);
  return row;
}

void Rows::release(uint32_t row) noexcept {
  header(row).id_low = first_free_;
  first_free_ = row;
  distances_[row] = 0;
  --size_;
}

void Rows::set_newest(uint64_t version) noexcept {
  constexpr uint64_t kDistanceMax = 0xFFFFFFFF;
  if (version - base_version_ <= kDistanceMax) return;
  const uint64_t base = version - kDistanceMax / 2;
  for (uint32_t& distance : distances_) {
    if (distance == 0) continue;
    const uint64_t old = base_version_ + distance;
    distance = old > base ? static_cast<uint32_t>(old - base) : 1;
  }
  base_version_ = base;
}

void Rows::changed_since(uint64_t version, std::vector<uint32_t>& out) const {
  const uint64_t above = version > base_version_ ? version - base_version_ : 0;
  for (uint32_t row = 0; row < end_; ++row)
    if (distances_[row] > above) out.push_back(row);
}

}  // namespace embedstore
