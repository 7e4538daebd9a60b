#include "native/delta.h"

#include <bit>
#include <new>

#include "native/batch.h"
#include "native/crc32c.h"
#include "native/hash.h"

namespace embedstore {
namespace {

static_assert(std::endian::native == std::endian::little, "columns are little-endian and copied as they are");

constexpr char kMagic[4] = {'E', 'S', 'C', 'D'};
constexpr uint16_t kFormat = 1;
constexpr uint16_t kEmbeddingsOnly = 1;
constexpr uint64_t kBytesMax = uint64_t{1} << 48;
constexpr size_t kStreamBytesMax = 512;

constexpr size_t padded(size_t bytes) noexcept { return (bytes + 7) & ~size_t{7}; }

size_t bytes_of(const WatermarkSet& watermarks) noexcept {
  size_t bytes = 0;
  for (const auto& [stream, position] : watermarks.list()) bytes += 2 + stream.size() + 8;
  return padded(bytes);
}

}  // namespace

bool DeltaLayout::of(const DeltaHeader& h, DeltaLayout& out) noexcept {
  if (h.num_rows > kBytesMax || h.num_tombstones > kBytesMax || h.watermark_bytes > kBytesMax) return false;
  const __uint128_t row_bytes = 28 + __uint128_t{4} * h.dim + __uint128_t{4} * h.state_floats;
  const __uint128_t total = row_bytes * h.num_rows + __uint128_t{17} * h.num_tombstones + h.watermark_bytes + 128;
  if (total > kBytesMax) return false;
  const size_t n = h.num_rows;
  out.ids = DeltaHeader::kBytes + h.watermark_bytes;
  out.versions = out.ids + 8 * n;
  out.first_seen = out.versions + 8 * n;
  out.last_seen = out.first_seen + 4 * n;
  out.updates = out.last_seen + 4 * n;
  out.embeddings = out.updates + 4 * n;
  out.states = out.embeddings + 4 * size_t{h.dim} * n;
  out.tombstone_ids = padded(out.states + 4 * size_t{h.state_floats} * n);
  out.tombstone_versions = out.tombstone_ids + 8 * h.num_tombstones;
  out.tombstone_reasons = out.tombstone_versions + 8 * h.num_tombstones;
  out.checksum = out.tombstone_reasons + h.num_tombstones;
  out.total = out.checksum + 4;
  return true;
}

DeltaBytes::DeltaBytes(DeltaHeader h, const WatermarkSet& watermarks) {
  h.num_watermarks = static_cast<uint32_t>(watermarks.list().size());
  h.watermark_bytes = bytes_of(watermarks);
  if (!DeltaLayout::of(h, layout_)) throw std::bad_alloc();
  data_ = std::make_unique_for_overwrite<uint8_t[]>(layout_.total);
  uint8_t* p = data_.get();
  std::memset(p, 0, layout_.ids);
  std::memcpy(p, kMagic, 4);
  store_at<uint16_t>(p + 4, 0, kFormat);
  store_at<uint16_t>(p + 6, 0, h.embeddings_only ? kEmbeddingsOnly : 0);
  const uint32_t words[] = {h.chunk, h.num_chunks, h.dim, h.state_floats, h.optimizer, h.num_watermarks};
  std::memcpy(p + 8, words, sizeof words);
  const uint64_t longs[] = {h.incarnation,  h.parent_incarnation, h.branch_version,
                            h.from_version, h.to_version,         static_cast<uint64_t>(h.clock_ms),
                            h.num_rows,     h.num_tombstones,     h.watermark_bytes,
                            layout_.total};
  std::memcpy(p + 32, longs, sizeof longs);
  p += DeltaHeader::kBytes;
  for (const auto& [stream, position] : watermarks.list()) {
    store_at<uint16_t>(p, 0, static_cast<uint16_t>(stream.size()));
    std::memcpy(p + 2, stream.data(), stream.size());
    std::memcpy(p + 2 + stream.size(), &position, 8);
    p += 2 + stream.size() + 8;
  }
  const size_t states_end = layout_.states + 4 * size_t{h.state_floats} * h.num_rows;
  std::memset(column(states_end), 0, layout_.tombstone_ids - states_end);
}

void DeltaBytes::seal() noexcept {
  store_at<uint32_t>(column(layout_.checksum), 0, crc32c(data_.get(), layout_.checksum));
}

Status DeltaView::parse(const uint8_t* data, size_t num_bytes, DeltaView& out) {
  out.data_ = data;
  if (Status s = out.read_header(num_bytes); !s.ok()) return s;
  const auto checksum = load_at<uint32_t>(data + out.layout_.checksum, 0);
  if (checksum != crc32c(data, out.layout_.checksum)) return Status::corrupt("its checksum does not match");
  if (Status s = out.read_watermarks(); !s.ok()) return s;
  return out.check_entries();
}

Status DeltaView::read_header(size_t num_bytes) {
  if (num_bytes < DeltaHeader::kBytes + 4) return Status::corrupt("is shorter than its header");
  if (std::memcmp(data_, kMagic, 4) != 0) return Status::corrupt("does not begin with the magic bytes");
  const auto format = load_at<uint16_t>(data_ + 4, 0);
  if (format != kFormat) return Status::corrupt("has format " + std::to_string(format) + ", not 1");
  const auto flags = load_at<uint16_t>(data_ + 6, 0);
  if ((flags & ~kEmbeddingsOnly) != 0) return Status::corrupt("has unknown flags");
  DeltaHeader& h = header_;
  h.embeddings_only = (flags & kEmbeddingsOnly) != 0;
  uint32_t* words[] = {&h.chunk, &h.num_chunks, &h.dim, &h.state_floats, &h.optimizer, &h.num_watermarks};
  for (size_t i = 0; i < std::size(words); ++i) *words[i] = load_at<uint32_t>(data_ + 8, i);
  uint64_t clock;
  uint64_t total;
  uint64_t* longs[] = {&h.incarnation, &h.parent_incarnation, &h.branch_version, &h.from_version,    &h.to_version,
                       &clock,         &h.num_rows,           &h.num_tombstones, &h.watermark_bytes, &total};
  for (size_t i = 0; i < std::size(longs); ++i) *longs[i] = load_at<uint64_t>(data_ + 32, i);
  h.clock_ms = static_cast<int64_t>(clock);
  if (!DeltaLayout::of(h, layout_)) return Status::corrupt("claims an impossible size");
  if (total != layout_.total || total != num_bytes) {
    return Status::corrupt("has " + std::to_string(num_bytes) + " bytes where its header wants " +
                           std::to_string(layout_.total));
  }
  if (h.incarnation == 0) return Status::corrupt("has no incarnation");
  if (h.from_version > h.to_version || h.to_version > kVersionMax || h.branch_version > kVersionMax)
    return Status::corrupt("has versions out of order");
  if (h.chunk >= h.num_chunks || h.num_chunks > (1u << 16) || (h.num_chunks & (h.num_chunks - 1)) != 0)
    return Status::corrupt("has an impossible chunk");
  if (h.clock_ms < 0) return Status::corrupt("has a negative clock");
  if (h.embeddings_only && (h.state_floats != 0 || h.optimizer != 0))
    return Status::corrupt("has optimizer state where it says it has none");
  return {};
}

Status DeltaView::read_watermarks() {
  const uint8_t* p = data_ + DeltaHeader::kBytes;
  const uint8_t* end = p + header_.watermark_bytes;
  watermarks_.clear();
  for (uint32_t i = 0; i < header_.num_watermarks; ++i) {
    if (end - p < 10) return Status::corrupt("has watermarks beyond their section");
    const size_t length = load_at<uint16_t>(p, 0);
    if (length == 0 || length > kStreamBytesMax || static_cast<size_t>(end - p) < 10 + length)
      return Status::corrupt("has a stream name of impossible length");
    std::string stream(reinterpret_cast<const char*>(p) + 2, length);
    const auto position = load_at<int64_t>(p + 2 + length, 0);
    if (position < 0) return Status::corrupt("has a negative watermark");
    if (!watermarks_.empty() && !(watermarks_.back().first < stream))
      return Status::corrupt("has watermarks out of order");
    watermarks_.emplace_back(std::move(stream), position);
    p += 10 + length;
  }
  if (end - p >= 8) return Status::corrupt("has bytes behind its watermarks");
  for (; p < end; ++p)
    if (*p != 0) return Status::corrupt("has bytes behind its watermarks");
  return {};
}

Status DeltaView::check_entries() const {
  const DeltaHeader& h = header_;
  if (full() && h.num_tombstones != 0) return Status::corrupt("is a full chunk with tombstones");
  const unsigned chunk_bits = log2_of(h.num_chunks);
  const size_t count = h.num_rows + h.num_tombstones;
  if (count >= Distinct::kEnd) return Status::corrupt("has more entries than a chunk can hold");
  std::vector<uint64_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    const bool row = i < h.num_rows;
    const Tombstone tombstone = row ? Tombstone{} : this->tombstone(i - h.num_rows);
    ids[i] = row ? id(i) : tombstone.id;
    const uint64_t version = row ? this->version(i) : tombstone.version;
    if (version <= h.from_version || version > h.to_version) return Status::corrupt("has an entry of another version");
    if (!row && (tombstone.reason < Reason::kErased || tombstone.reason > Reason::kEvicted))
      return Status::corrupt("has a removal without a known reason");
    if (chunk_of(mix64(ids[i]), chunk_bits) != h.chunk) return Status::corrupt("has an id of another chunk");
  }
  Distinct distinct;
  distinct.build(ids.data(), count);
  if (distinct.size() != count) return Status::corrupt("has an id twice");
  return {};
}

}  // namespace embedstore
