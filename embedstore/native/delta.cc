#include "native/delta.h"

#include <algorithm>
#include <bit>

#include "native/batch.h"
#include "native/crc32c.h"
#include "native/hash.h"

namespace embedstore {
namespace {

static_assert(std::endian::native == std::endian::little, "columns are little-endian and copied as they are");

constexpr char kMagic[4] = {'E', 'S', 'C', 'D'};
constexpr uint16_t kFormat = 2;
constexpr uint16_t kEmbeddingsOnly = 1;
constexpr uint64_t kBytesMax = uint64_t{1} << 48;
constexpr size_t kStreamBytesMax = 512;

constexpr size_t padded(size_t bytes) noexcept { return (bytes + 7) & ~size_t{7}; }

size_t bytes_of(const WatermarkSet& watermarks) noexcept {
  size_t bytes = 0;
  for (const auto& [stream, position] : watermarks.list()) bytes += 2 + stream.size() + 8;
  return padded(bytes);
}

// Whether the bytes are UTF-8 as RFC 3629 has it: shortest forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(const uint8_t* p, const uint8_t* end) noexcept {
  while (p < end) {
    const uint8_t lead = *p++;
    if (lead < 0x80) continue;
    const int more = lead >= 0xC2 && lead < 0xE0 ? 1 : (lead & 0xF0) == 0xE0 ? 2 : lead >= 0xF0 && lead < 0xF5 ? 3 : 0;
    if (more == 0 || end - p < more) return false;
    const uint8_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (*p < least || *p > most) return false;
    for (int i = 1; i < more; ++i)
      if ((p[i] & 0xC0) != 0x80) return false;
    p += more;
  }
  return true;
}

uint64_t used_slots(const Sketch::Slot* block) noexcept {
  uint64_t used = 0;
  for (uint32_t s = 0; s < Sketch::kBlockSlots; ++s) used |= uint64_t{block[s].count != 0} << s;
  return used;
}
static_assert(Sketch::kBlockSlots == 64, "a mask has a bit for each slot of a block");

}  // namespace

bool DeltaLayout::of(const DeltaHeader& h, DeltaLayout& out) noexcept {
  if (h.num_rows > kBytesMax || h.num_tombstones > kBytesMax || h.watermark_bytes > kBytesMax) return false;
  const __uint128_t row_bytes = 28 + __uint128_t{4} * h.dim + __uint128_t{4} * h.state_floats;
  if (h.sketch_entries > kBytesMax) return false;
  const __uint128_t sketch_bytes = __uint128_t{12} * h.sketch_blocks + __uint128_t{8} * h.sketch_entries;
  const __uint128_t total = row_bytes * h.num_rows + __uint128_t{17} * h.num_tombstones + sketch_bytes +
                            h.watermark_bytes + DeltaHeader::kBytes + 24;
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
  out.sketch_masks = padded(out.tombstone_reasons + h.num_tombstones);
  out.sketch_numbers = out.sketch_masks + 8 * size_t{h.sketch_blocks};
  out.sketch_fingerprints = out.sketch_numbers + 4 * size_t{h.sketch_blocks};
  out.sketch_counts = out.sketch_fingerprints + 4 * h.sketch_entries;
  out.checksum = out.sketch_counts + 4 * h.sketch_entries;
  out.total = out.checksum + 4;
  return true;
}

bool DeltaWriter::settle(const Sketch& sketch, DeltaPlan& plan) noexcept {
  DeltaHeader& h = plan.header;
  h.num_rows = plan.rows.size();
  h.num_tombstones = plan.removed.size();
  h.num_watermarks = static_cast<uint32_t>(plan.watermarks->list().size());
  h.watermark_bytes = bytes_of(*plan.watermarks);
  if (!h.embeddings_only && sketch.version() > h.from_version) {
    h.sketch_slots = sketch.num_slots();
    h.sketch_blocks = static_cast<uint32_t>(plan.sketch_blocks.size());
    h.sketch_halvings = sketch.halvings();
    for (const uint32_t b : plan.sketch_blocks) h.sketch_entries += std::popcount(used_slots(sketch.block(b)));
  }
  return DeltaLayout::of(h, plan.layout);
}

DeltaWriter::DeltaWriter(const DeltaPlan& plan, uint8_t* out) noexcept : plan_(plan), layout_(plan.layout), data_(out) {
  const DeltaHeader& h = plan.header;
  uint8_t* p = data_;
  std::memset(p, 0, layout_.ids);
  std::memcpy(p, kMagic, 4);
  store_at<uint16_t>(p + 4, 0, kFormat);
  store_at<uint16_t>(p + 6, 0, h.embeddings_only ? kEmbeddingsOnly : 0);
  const uint32_t words[] = {h.chunk, h.num_chunks, h.dim, h.state_floats, h.optimizer, h.num_watermarks};
  std::memcpy(p + 8, words, sizeof words);
  const uint64_t longs[] = {h.incarnation,  h.parent_incarnation, h.branch_version,
                            h.from_version, h.to_version,         static_cast<uint64_t>(h.clock_ms),
                            h.num_rows,     h.num_tombstones,     h.watermark_bytes};
  std::memcpy(p + 32, longs, sizeof longs);
  const uint32_t sketch_words[] = {h.sketch_slots, h.sketch_blocks};
  std::memcpy(p + 104, sketch_words, sizeof sketch_words);
  const uint64_t sketch_longs[] = {h.sketch_entries, h.sketch_halvings, layout_.total};
  std::memcpy(p + 112, sketch_longs, sizeof sketch_longs);
  p += DeltaHeader::kBytes;
  for (const auto& [stream, position] : plan.watermarks->list()) {
    store_at<uint16_t>(p, 0, static_cast<uint16_t>(stream.size()));
    std::memcpy(p + 2, stream.data(), stream.size());
    std::memcpy(p + 2 + stream.size(), &position, 8);
    p += 2 + stream.size() + 8;
  }
  const size_t states_end = layout_.states + 4 * size_t{h.state_floats} * h.num_rows;
  std::memset(column(states_end), 0, layout_.tombstone_ids - states_end);
  const size_t reasons_end = layout_.tombstone_reasons + h.num_tombstones;
  std::memset(column(reasons_end), 0, layout_.sketch_masks - reasons_end);
}

void DeltaWriter::write_removed() const noexcept {
  for (size_t i = 0; i < plan_.removed.size(); ++i) {
    store_at<uint64_t>(column(layout_.tombstone_ids), i, plan_.removed[i].id);
    store_at<uint64_t>(column(layout_.tombstone_versions), i, plan_.removed[i].version);
    store_at<Reason>(column(layout_.tombstone_reasons), i, plan_.removed[i].reason);
  }
}

void DeltaWriter::write_sketch(const Sketch& sketch) const noexcept {
  const std::vector<uint32_t>& blocks = plan_.sketch_blocks;
  size_t entry = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Sketch::Slot* slots = sketch.block(blocks[i]);
    const uint64_t used = used_slots(slots);
    store_at<uint64_t>(column(layout_.sketch_masks), i, used);
    store_at<uint32_t>(column(layout_.sketch_numbers), i, blocks[i]);
    for (uint64_t left = used; left != 0; left &= left - 1, ++entry) {
      const Sketch::Slot& slot = slots[std::countr_zero(left)];
      store_at<uint32_t>(column(layout_.sketch_fingerprints), entry, slot.fingerprint);
      store_at<uint32_t>(column(layout_.sketch_counts), entry, slot.count);
    }
  }
}

void DeltaWriter::seal(const DeltaLayout& layout, uint8_t* data) noexcept {
  store_at<uint32_t>(data + layout.checksum, 0, crc32c(data, layout.checksum));
}

Status DeltaView::parse(const uint8_t* data, size_t num_bytes, DeltaView& out) {
  out.data_ = data;
  if (Status s = out.read_header(num_bytes); !s.ok()) return s;
  const auto checksum = load_at<uint32_t>(data + out.layout_.checksum, 0);
  if (checksum != crc32c(data, out.layout_.checksum)) return Status::corrupt("its checksum does not match");
  if (Status s = out.read_watermarks(); !s.ok()) return s;
  if (Status s = out.check_sketch(); !s.ok()) return s;
  return out.check_entries();
}

Status DeltaView::read_header(size_t num_bytes) {
  if (num_bytes < DeltaHeader::kBytes + 4) return Status::corrupt("is shorter than its header");
  if (std::memcmp(data_, kMagic, 4) != 0) return Status::corrupt("does not begin with the magic bytes");
  const auto format = load_at<uint16_t>(data_ + 4, 0);
  if (format != kFormat) return Status::corrupt("has format " + std::to_string(format) + ", not 2");
  const auto flags = load_at<uint16_t>(data_ + 6, 0);
  if ((flags & ~kEmbeddingsOnly) != 0) return Status::corrupt("has unknown flags");
  DeltaHeader& h = header_;
  h.embeddings_only = (flags & kEmbeddingsOnly) != 0;
  uint32_t* words[] = {&h.chunk, &h.num_chunks, &h.dim, &h.state_floats, &h.optimizer, &h.num_watermarks};
  for (size_t i = 0; i < std::size(words); ++i) *words[i] = load_at<uint32_t>(data_ + 8, i);
  uint64_t clock;
  uint64_t* longs[] = {&h.incarnation, &h.parent_incarnation, &h.branch_version, &h.from_version,   &h.to_version,
                       &clock,         &h.num_rows,           &h.num_tombstones, &h.watermark_bytes};
  for (size_t i = 0; i < std::size(longs); ++i) *longs[i] = load_at<uint64_t>(data_ + 32, i);
  h.sketch_slots = load_at<uint32_t>(data_ + 104, 0);
  h.sketch_blocks = load_at<uint32_t>(data_ + 104, 1);
  h.sketch_entries = load_at<uint64_t>(data_ + 112, 0);
  h.sketch_halvings = load_at<uint64_t>(data_ + 112, 1);
  const auto total = load_at<uint64_t>(data_ + 112, 2);
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
  if (h.embeddings_only && has_sketch()) return Status::corrupt("has a sketch where it says it has embeddings only");
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
    if (!is_utf8(p + 2, p + 2 + length)) return Status::corrupt("has a stream name that is not UTF-8");
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

Status DeltaView::check_sketch() const {
  const DeltaHeader& h = header_;
  const uint32_t slots = h.sketch_slots;
  if (slots == 0) {
    if (h.sketch_blocks == 0 && h.sketch_entries == 0 && h.sketch_halvings == 0) return {};
    return Status::corrupt("has parts of a sketch without slots");
  }
  if (slots < Sketch::kBlockSlots || !std::has_single_bit(slots)) return Status::corrupt("has an impossible sketch");
  uint64_t entries = 0;
  for (uint32_t i = 0; i < h.sketch_blocks; ++i) {
    const auto number = load_at<uint32_t>(data_ + layout_.sketch_numbers, i);
    if (number >= slots / Sketch::kBlockSlots) return Status::corrupt("has a block beyond its sketch");
    if (i > 0 && number <= load_at<uint32_t>(data_ + layout_.sketch_numbers, i - 1))
      return Status::corrupt("has blocks of its sketch out of order");
    entries += std::popcount(load_at<uint64_t>(data_ + layout_.sketch_masks, i));
  }
  if (entries != h.sketch_entries) return Status::corrupt("has other entries in its sketch than its masks say");
  for (uint64_t i = 0; i < entries; ++i)
    if (load_at<uint32_t>(data_ + layout_.sketch_counts, i) == 0) return Status::corrupt("has a count of zero");
  return {};
}

bool DeltaView::read_sketch(Sketch& into) const {
  const DeltaHeader& h = header_;
  if (!has_sketch()) return true;
  into.begin(h.sketch_slots, !full());
  size_t entry = 0;
  for (uint32_t i = 0; i < h.sketch_blocks; ++i) {
    Sketch::Slot* slots = into.open_block(load_at<uint32_t>(data_ + layout_.sketch_numbers, i), h.to_version);
    std::fill_n(slots, Sketch::kBlockSlots, Sketch::Slot{});
    for (auto left = load_at<uint64_t>(data_ + layout_.sketch_masks, i); left != 0; left &= left - 1, ++entry) {
      slots[std::countr_zero(left)] = {load_at<uint32_t>(data_ + layout_.sketch_fingerprints, entry),
                                       load_at<uint32_t>(data_ + layout_.sketch_counts, entry)};
    }
  }
  return into.finish(h.sketch_halvings, h.to_version);
}

Status DeltaView::check_entries() const {
  const DeltaHeader& h = header_;
  const auto padded_with_zeros = [this](size_t from, size_t to) {
    return std::all_of(data_ + from, data_ + to, [](uint8_t byte) { return byte == 0; });
  };
  if (!padded_with_zeros(layout_.states + 4 * size_t{h.state_floats} * h.num_rows, layout_.tombstone_ids) ||
      !padded_with_zeros(layout_.tombstone_reasons + h.num_tombstones, layout_.sketch_masks))
    return Status::corrupt("has padding that is not zero");
  if (full() && h.num_tombstones != 0) return Status::corrupt("is a full chunk with tombstones");
  const unsigned chunk_bits = log2_of(h.num_chunks);
  const size_t count = h.num_rows + h.num_tombstones;
  if (count >= Distinct::kEnd) return Status::corrupt("has more entries than a chunk can hold");
  std::vector<uint64_t> ids(full() ? 0 : count);
  for (size_t i = 0; i < count; ++i) {
    const bool row = i < h.num_rows;
    const Tombstone tombstone = row ? Tombstone{} : this->tombstone(i - h.num_rows);
    const uint64_t id = row ? this->id(i) : tombstone.id;
    const uint64_t version = row ? this->version(i) : tombstone.version;
    if (version <= h.from_version || version > h.to_version) return Status::corrupt("has an entry of another version");
    if (!row && i > h.num_rows && version < this->tombstone(i - h.num_rows - 1).version)
      return Status::corrupt("has removals out of order");
    if (!row && (tombstone.reason < Reason::kErased || tombstone.reason > Reason::kEvicted))
      return Status::corrupt("has a removal without a known reason");
    if (chunk_of(mix64(id), chunk_bits) != h.chunk) return Status::corrupt("has an id of another chunk");
    if (!full()) ids[i] = id;
  }
  if (full()) return {};
  Distinct distinct;
  distinct.build(ids.data(), ids.size());
  if (distinct.size() != count) return Status::corrupt("has an id twice");
  return {};
}

}  // namespace embedstore
