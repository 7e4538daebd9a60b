// The rows of one chunk, addressed by number.
//
// A row is a header (id, first_seen, last_seen, updates), its embedding and its optimizer state, next to each other and
// 4-byte aligned. Rows lie in slabs of some ten KiB without gaps. The first slab starts with a few rows and doubles by
// moving until it is a whole one; from then on slabs come from the table's pool and never move. Row numbers have no
// holes between slabs and stay valid when slabs move; pointers do not outlive the chunk's lock. The versions of the
// rows stand apart (row_versions.h).
//
// Invariants: a row number below end() is either in use (version set, reachable from the index) or in the set of free
// numbers; the largest number below end() is in use. Numbers are taken lowest first, so that rows gather in the low
// slabs, and compaction moves the last row to the lowest free number until no number is free; then trim() gives the
// slabs behind the rows back. Nothing that removes or moves a row needs memory. Not synchronised: the chunk's lock
// protects it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "native/free_set.h"
#include "native/index.h"
#include "native/prefetch.h"
#include "native/row_type.h"
#include "native/row_versions.h"
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
  uint32_t slab_rows;
  size_t slab_bytes;

  // Which slab a row is in: row / slab_rows, exact for rows below kRowsMax (Granlund and Montgomery 1994).
  static constexpr size_t kRowsMax = size_t{1} << 31;
  size_t slab_of(uint32_t row) const noexcept { return (row * slab_factor) >> slab_shift; }

  uint64_t slab_factor;
  unsigned slab_shift;
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
  // One past the largest row number in use.
  uint32_t end() const noexcept { return end_; }
  size_t memory_bytes() const noexcept;

  // Makes room for `more` rows: allocate() then cannot fail. Throws std::bad_alloc, and no row changes then.
  void reserve(size_t more);
  // The new row's header has its id; everything else is undefined, and its version unset.
  uint32_t allocate(uint64_t id) noexcept;
  void release(uint32_t row) noexcept;

  // Whether moving rows together and trimming gives memory back, and leaves room for a third more rows.
  bool sparse() const noexcept;
  struct Move {
    uint32_t from;
    uint32_t to;
  };
  // Moves the last row, its version too, to the lowest free number; the caller tells the index. Both kNoRow when no
  // number is free.
  Move compact_one() noexcept;
  // Gives back what lies behind the last row in use; what reserve() promised is gone with it.
  void trim() noexcept;

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

  static const std::byte* packed(const RowHeader* header) noexcept {
    return reinterpret_cast<const std::byte*>(header + 1);
  }

  template <int kWrite>
  static void prefetch(const RowHeader* header, size_t bytes) noexcept {
    const auto* p = reinterpret_cast<const std::byte*>(header);
    const std::byte* last = p + bytes - 1;
    for (; p < last; p += 64) prefetch_line<kWrite>(p);
    prefetch_line<kWrite>(last);
  }
  template <int kWrite>
  void prefetch(uint32_t row, size_t bytes) const noexcept {
    prefetch<kWrite>(&header(row), bytes);
  }

  // What at() reads before it can say where a row is, as far as that is less than the rows of a usual batch.
  void prefetch_origins() const noexcept {
    constexpr size_t kPerLine = 64 / sizeof(uintptr_t);
    constexpr size_t kSlabsMax = 16 * kPerLine;
    if (origins_.size() > kSlabsMax) return;
    for (size_t slab = 0; slab < origins_.size(); slab += kPerLine) prefetch_line(&origins_[slab]);
  }
  const void* version_line(uint32_t row) const noexcept { return versions_.line(row); }

  bool in_use(uint32_t row) const noexcept { return versions_.in_use(row); }
  uint64_t version(uint32_t row) const noexcept { return versions_.get(row); }
  // `version` is at most the last one given to set_newest().
  void set_version(uint32_t row, uint64_t version) noexcept { versions_.set(row, version); }
  // Announces the largest version that will be set, before it is.
  void set_newest(uint64_t version) noexcept { versions_.set_newest(version); }
  // Appends the numbers of all rows in use whose version is above `version`.
  void changed_since(uint64_t version, std::vector<uint32_t>& out) const { versions_.changed_since(version, out); }

 private:
  std::byte* at(uint32_t row) const noexcept {
    return reinterpret_cast<std::byte*>(origins_[layout_->slab_of(row)] + row * layout_->row_bytes);
  }
  // Where row 0 would be if all rows lay as those of this slab do: saves a multiplication for every row reached.
  uintptr_t origin_of(const void* memory, size_t slab) const noexcept {
    return reinterpret_cast<uintptr_t>(memory) - slab * layout_->slab_rows * layout_->row_bytes;
  }
  void* slab_at(size_t slab) const noexcept { return at(static_cast<uint32_t>(slab * layout_->slab_rows)); }
  size_t capacity_for(size_t rows) const noexcept;
  void grow(size_t needed);
  void move_first_slab(size_t capacity);
  void free_slabs(size_t from) noexcept;

  const RowLayout* layout_;
  SlabPool* pool_;
  std::vector<uintptr_t> origins_;  // of the slabs
  RowVersions versions_;
  FreeSet free_;
  size_t capacity_ = 0;  // less than a slab's rows: the first slab is a small one of its own
  uint32_t end_ = 0;
  uint32_t size_ = 0;
};

}  // namespace embedstore
