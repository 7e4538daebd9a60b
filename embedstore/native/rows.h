// The rows of one chunk, addressed by number.
//
// A row is a header (id, first_seen, last_seen, updates), its embedding (float32, or packed as row_type.h says) and its
// optimizer state, next to each other and 4-byte aligned. Rows lie in slabs of a fixed power-of-two number of rows
// (about 64 KiB). The first slab starts with a few rows and doubles by moving until it has that size; from then on
// slabs come from the table's pool and never move. Row numbers stay valid when slabs move; pointers do not outlive the
// chunk's lock.
//
// The version that last changed each row stands apart, in one dense array, so that a delta finds changed rows without
// touching them. Kept as 32-bit distances from a base; 0 marks a row that is not in use. When a distance would not fit,
// the base moves up and rows older than it count as changed at the base: they may be sent once more, never missed.
//
// Invariants: a row number below end() is either in use (version set, reachable from the index) or in the free list,
// which is threaded through the headers. Not synchronised: the chunk's lock protects it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "native/index.h"
#include "native/row_type.h"
#include "native/slab_pool.h"

namespace embedstore {

struct RowHeader {
  uint32_t id_low;
  uint32_t id_high;
  uint32_t first_seen_s;  // unix seconds of event time
  uint32_t last_seen_s;
  uint32_t updates;

  uint64_t id() const noexcept { return (uint64_t{id_high} << 32) | id_low; }
  void set_id(uint64_t id) noexcept {
    id_low = static_cast<uint32_t>(id);
    id_high = static_cast<uint32_t>(id >> 32);
  }
};
static_assert(sizeof(RowHeader) == 20 && alignof(RowHeader) == 4);

// How long a row is and how many share a slab; the same for all chunks of a table.
struct RowLayout {
  // Packed rows carry no optimizer state.
  RowLayout(uint32_t dim, uint32_t state_floats, RowType stored = RowType::kFloat32) noexcept;

  uint32_t dim;
  uint32_t state_floats;
  RowType stored;
  size_t embedding_bytes;  // a multiple of 4
  size_t row_bytes;
  unsigned slab_shift;  // log2 of the rows of a slab
  size_t slab_bytes() const noexcept { return row_bytes << slab_shift; }
};

class Rows final : public RowHashes {
 public:
  Rows(const RowLayout& layout, SlabPool& pool) noexcept : layout_(&layout), pool_(&pool) {}
  ~Rows();
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  void swap(Rows& other) noexcept;

  const RowLayout& layout() const noexcept { return *layout_; }
  uint32_t size() const noexcept { return size_; }
  // One past the largest row number that was ever in use.
  uint32_t end() const noexcept { return end_; }
  size_t memory_bytes() const noexcept;

  // Makes room for `more` rows: allocate() then cannot fail. Throws std::bad_alloc, and no row changes then.
  void reserve(size_t more);
  // The new row's header has its id; everything else is undefined, and its version unset.
  uint32_t allocate(uint64_t id) noexcept;
  void release(uint32_t row) noexcept;

  RowHeader& header(uint32_t row) noexcept { return *reinterpret_cast<RowHeader*>(at(row)); }
  const RowHeader& header(uint32_t row) const noexcept { return *reinterpret_cast<const RowHeader*>(at(row)); }
  // The embedding as it is kept, whatever its type.
  std::byte* packed(uint32_t row) noexcept { return at(row) + sizeof(RowHeader); }
  const std::byte* packed(uint32_t row) const noexcept { return at(row) + sizeof(RowHeader); }
  // Float32 rows only.
  float* embedding(uint32_t row) noexcept { return reinterpret_cast<float*>(at(row) + sizeof(RowHeader)); }
  const float* embedding(uint32_t row) const noexcept {
    return reinterpret_cast<const float*>(at(row) + sizeof(RowHeader));
  }
  float* state(uint32_t row) noexcept { return embedding(row) + layout_->dim; }
  const float* state(uint32_t row) const noexcept { return embedding(row) + layout_->dim; }
  uint64_t hash_of(uint32_t row) const noexcept override { return mix64(header(row).id()); }

  template <int kWrite>
  void prefetch(uint32_t row, size_t bytes) const noexcept {
    const std::byte* p = at(row);
    for (size_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(p + offset, kWrite);
    __builtin_prefetch(p + bytes - 1, kWrite);
  }

  bool in_use(uint32_t row) const noexcept { return distances_[row] != 0; }
  uint64_t version(uint32_t row) const noexcept { return base_version_ + distances_[row]; }
  // `version` is at most the last one given to set_newest().
  void set_version(uint32_t row, uint64_t version) noexcept {
    distances_[row] = version > base_version_ ? static_cast<uint32_t>(version - base_version_) : 1;
  }
  // Announces the largest version that will be set, before it is.
  void set_newest(uint64_t version) noexcept;
  // Appends the numbers of all rows in use whose version is above `version`.
  void changed_since(uint64_t version, std::vector<uint32_t>& out) const;

 private:
  std::byte* at(uint32_t row) const noexcept {
    const uint32_t in_slab = row & ((uint32_t{1} << layout_->slab_shift) - 1);
    return slabs_[row >> layout_->slab_shift] + in_slab * layout_->row_bytes;
  }
  void grow_first_slab(size_t rows);
  size_t slab_rows() const noexcept { return size_t{1} << layout_->slab_shift; }

  const RowLayout* layout_;
  SlabPool* pool_;
  std::vector<std::byte*> slabs_;
  std::vector<uint32_t> distances_;
  uint64_t base_version_ = 0;
  size_t capacity_ = 0;
  uint32_t end_ = 0;
  uint32_t size_ = 0;
  uint32_t first_free_ = kNoRow;
};

}  // namespace embedstore
