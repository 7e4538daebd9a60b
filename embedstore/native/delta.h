// The bytes of a ChunkDelta: docs/formats/delta.md describes them.
//
// DeltaView::parse trusts nothing: lengths, counts, versions, order and checksum are checked before anything is used,
// and every column lies inside the bytes afterwards. Two things it leaves to whoever applies the delta, who meets them
// anyway: that no id of a full delta comes twice, and that the entries of the sketch can be found where they lie. Views
// point into the caller's bytes. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "native/sketch.h"
#include "native/status.h"
#include "native/tombstones.h"
#include "native/watermarks.h"

namespace embedstore {

inline constexpr uint64_t kVersionMax = (uint64_t{1} << 56) - 1;

struct DeltaHeader {
  static constexpr size_t kBytes = 136;

  bool embeddings_only = false;
  uint32_t chunk = 0;
  uint32_t num_chunks = 0;
  uint32_t dim = 0;
  uint32_t state_floats = 0;  // of a row; 0 with embeddings_only
  uint32_t optimizer = 0;     // Optimizer::Kind; 0 with embeddings_only
  uint64_t incarnation = 0;
  uint64_t parent_incarnation = 0;
  uint64_t branch_version = 0;
  uint64_t from_version = 0;  // 0: the full chunk
  uint64_t to_version = 0;
  int64_t clock_ms = 0;
  uint64_t num_rows = 0;
  uint64_t num_tombstones = 0;
  uint32_t num_watermarks = 0;
  uint64_t watermark_bytes = 0;  // with padding
  uint32_t sketch_slots = 0;     // 0: a full delta has an empty sketch, another one an unchanged sketch
  uint32_t sketch_blocks = 0;
  uint64_t sketch_entries = 0;
  uint64_t sketch_halvings = 0;
};

// Where each column begins.
struct DeltaLayout {
  size_t ids, versions, first_seen, last_seen, updates, embeddings, states;
  size_t tombstone_ids, tombstone_versions, tombstone_reasons;
  size_t sketch_masks, sketch_numbers, sketch_fingerprints, sketch_counts;
  size_t checksum;
  size_t total;

  // False when the sizes do not fit in 2^48 bytes.
  static bool of(const DeltaHeader& header, DeltaLayout& out) noexcept;
};

template <class T>
T load_at(const uint8_t* column, size_t i) noexcept {
  T value;
  std::memcpy(&value, column + i * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void store_at(uint8_t* column, size_t i, T value) noexcept {
  std::memcpy(column + i * sizeof(T), &value, sizeof(T));
}

// What a delta will hold, found without copying anything.
struct DeltaPlan {
  DeltaHeader header;
  DeltaLayout layout{};
  Watermarks watermarks;
  std::vector<uint32_t> rows;  // numbers
  std::vector<Tombstone> removed;
  std::vector<uint32_t> sketch_blocks;
};

// An encoded delta being written into memory of `layout.total` bytes: the constructor writes header, watermarks and
// padding, the chunk fills in the columns, seal() comes last.
class DeltaWriter {
 public:
  DeltaWriter(const DeltaPlan& plan, uint8_t* out) noexcept;

  uint8_t* column(size_t offset) const noexcept { return data_ + offset; }
  void write_removed() const noexcept;
  void write_sketch(const Sketch& sketch) const noexcept;

  // Completes a plan that has everything but the layout and what the header says of its parts. False when the delta
  // would be too large.
  static bool settle(const Sketch& sketch, DeltaPlan& plan) noexcept;
  // Writes the checksum, when everything else is there.
  static void seal(const DeltaLayout& layout, uint8_t* data) noexcept;

 private:
  const DeltaPlan& plan_;
  const DeltaLayout& layout_;
  uint8_t* data_;
};

class DeltaView {
 public:
  // Throws std::bad_alloc.
  static Status parse(const uint8_t* data, size_t num_bytes, DeltaView& out);

  const DeltaHeader& header() const noexcept { return header_; }
  const WatermarkList& watermarks() const noexcept { return watermarks_; }
  bool full() const noexcept { return header_.from_version == 0; }
  bool has_sketch() const noexcept { return header_.sketch_slots != 0; }

  uint64_t id(size_t i) const noexcept { return load_at<uint64_t>(data_ + layout_.ids, i); }
  uint64_t version(size_t i) const noexcept { return load_at<uint64_t>(data_ + layout_.versions, i); }
  uint32_t first_seen_s(size_t i) const noexcept { return load_at<uint32_t>(data_ + layout_.first_seen, i); }
  uint32_t last_seen_s(size_t i) const noexcept { return load_at<uint32_t>(data_ + layout_.last_seen, i); }
  uint32_t updates(size_t i) const noexcept { return load_at<uint32_t>(data_ + layout_.updates, i); }
  const uint8_t* embedding(size_t i) const noexcept {
    return data_ + layout_.embeddings + i * header_.dim * sizeof(float);
  }
  const uint8_t* state(size_t i) const noexcept {
    return data_ + layout_.states + i * header_.state_floats * sizeof(float);
  }
  Tombstone tombstone(size_t i) const noexcept {
    return {load_at<uint64_t>(data_ + layout_.tombstone_ids, i),
            load_at<uint64_t>(data_ + layout_.tombstone_versions, i),
            static_cast<Reason>(data_[layout_.tombstone_reasons + i])};
  }
  // Overwrites the blocks that came, after emptying the others of a full delta. False when the result is none that
  // counting could have made; throw it away then. Throws std::bad_alloc.
  bool read_sketch(Sketch& into) const;

 private:
  Status read_header(size_t num_bytes);
  Status read_watermarks();
  Status check_entries() const;
  Status check_sketch() const;

  DeltaHeader header_;
  DeltaLayout layout_{};
  WatermarkList watermarks_;
  const uint8_t* data_ = nullptr;
};

}  // namespace embedstore
