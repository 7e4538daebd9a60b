#include "native/row_versions.h"

#include <algorithm>
#include <cstring>

namespace embedstore {
namespace {

constexpr uint64_t kDistanceMax = 0xFFFFFFFF;
constexpr size_t kFirstRows = 8;
constexpr size_t kPieceRows = 32;  // looked at together

// Written for the compiler to vectorise: no exit in the loop.
bool any_above(const uint32_t* distances, uint32_t above) noexcept {
  uint32_t any = 0;
  for (size_t i = 0; i < kPieceRows; ++i) any |= distances[i] > above ? 1u : 0u;
  return any != 0;
}

}  // namespace

size_t RowVersions::memory_bytes() const noexcept {
  const size_t rows = blocks_.empty() ? 0 : first_rows_ + (blocks_.size() - 1) * kBlockRows;
  return rows * sizeof(uint32_t) + blocks_.capacity() * sizeof(Block);
}

void RowVersions::reserve(size_t end) {
  if (end == 0) return;
  if (end > first_rows_ && first_rows_ < kBlockRows) {
    size_t rows = std::max(first_rows_, kFirstRows);
    while (rows < end && rows < kBlockRows) rows *= 2;
    grow_first_block(rows);
  }
  const size_t blocks = (end + kBlockRows - 1) / kBlockRows;
  if (blocks > blocks_.capacity()) blocks_.reserve(std::max(blocks, blocks_.size() + blocks_.size() / 4 + 4));
  while (blocks_.size() < blocks) blocks_.push_back(std::make_unique<uint32_t[]>(kBlockRows));
}

void RowVersions::grow_first_block(size_t rows) {
  if (blocks_.empty()) blocks_.reserve(1);
  Block block = std::make_unique<uint32_t[]>(rows);
  if (blocks_.empty()) {
    blocks_.push_back(std::move(block));
  } else {
    std::copy_n(blocks_[0].get(), first_rows_, block.get());
    blocks_[0] = std::move(block);
  }
  first_rows_ = rows;
}

void RowVersions::trim(size_t end) noexcept {
  const size_t blocks = (end + kBlockRows - 1) / kBlockRows;
  if (blocks >= blocks_.size()) return;
  blocks_.resize(blocks);
  if (blocks == 0) first_rows_ = 0;
  if (blocks_.capacity() >= 2 * blocks) blocks_.shrink_to_fit();
}

void RowVersions::set_newest(uint64_t version) noexcept {
  if (version - base_ <= kDistanceMax) return;
  const uint64_t base = version - kDistanceMax / 2;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (size_t i = 0; i < rows_of(b); ++i) {
      uint32_t& distance = blocks_[b][i];
      if (distance == 0) continue;
      const uint64_t old = base_ + distance;
      distance = old > base ? static_cast<uint32_t>(old - base) : 1;
    }
  }
  base_ = base;
}

void RowVersions::changed_since(uint64_t version, std::vector<uint32_t>& out) const {
  const uint64_t distance = version > base_ ? version - base_ : 0;
  if (distance >= kDistanceMax) return;
  const auto above = static_cast<uint32_t>(distance);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const uint32_t* block = blocks_[b].get();
    const size_t rows = rows_of(b);
    if (b + 2 < blocks_.size())
      for (size_t i = 0; i < kBlockRows; i += 16) __builtin_prefetch(blocks_[b + 2].get() + i);
    for (size_t at = 0; at < rows; at += kPieceRows) {
      if (rows - at >= kPieceRows && !any_above(block + at, above)) continue;
      for (size_t i = at; i < std::min(at + kPieceRows, rows); ++i)
        if (block[i] > above) out.push_back(static_cast<uint32_t>(b * kBlockRows + i));
    }
  }
}

}  // namespace embedstore
