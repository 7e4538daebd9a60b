// The bytes of a ChunkDelta: docs/formats/delta.md describes them.
//
// DeltaView::parse trusts nothing: lengths, counts, versions, order and checksum are checked before anything is used,
// and every column lies inside the bytes afterwards. Views point into the caller's bytes. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "native/status.h"
#include "native/tombstones.h"
#include "native/watermarks.h"

namespace embedstore {

inline constexpr uint64_t kVersionMax = (uint64_t{1} << 56) - 1;

struct DeltaHeader {
  static constexpr size_t kBytes = 112;

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
};

// Where each column begins.
struct DeltaLayout {
  size_t ids, versions, first_seen, last_seen, updates, embeddings, states;
  size_t tombstone_ids, tombstone_versions, tombstone_reasons;
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

// An encoded delta being written: header, watermarks and padding are there, columns are filled in by the chunk.
class DeltaBytes {
 public:
  // Fills in num_watermarks and watermark_bytes. Throws std::bad_alloc.
  DeltaBytes(DeltaHeader header, const WatermarkSet& watermarks);

  const DeltaLayout& layout() const noexcept { return layout_; }
  uint8_t* column(size_t offset) noexcept { return data_.get() + offset; }
  // Writes the checksum, when everything else is there.
  void seal() noexcept;
  const uint8_t* data() const noexcept { return data_.get(); }
  size_t size() const noexcept { return layout_.total; }

 private:
  DeltaLayout layout_{};
  std::unique_ptr<uint8_t[]> data_;
};

class DeltaView {
 public:
  // Throws std::bad_alloc.
  static Status parse(const uint8_t* data, size_t num_bytes, DeltaView& out);

  const DeltaHeader& header() const noexcept { return header_; }
  const WatermarkList& watermarks() const noexcept { return watermarks_; }
  bool full() const noexcept { return header_.from_version == 0; }

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

 private:
  Status read_header(size_t num_bytes);
  Status read_watermarks();
  Status check_entries() const;

  DeltaHeader header_;
  DeltaLayout layout_{};
  WatermarkList watermarks_;
  const uint8_t* data_ = nullptr;
};

}  // namespace embedstore
