#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "native/chunk.h"
#include "native/quantize.h"

namespace embedstore {
namespace {

constexpr char kBadSketch[] = "has a sketch in which something cannot be found";

void write_row(const DeltaView& delta, size_t i, const ChunkConfig& config, EncodeRow encode, Rows& rows,
               uint32_t row) noexcept {
  RowHeader& header = rows.header(row);
  header.first_seen_s = delta.first_seen_s(i);
  header.last_seen_s = delta.last_seen_s(i);
  header.updates = delta.updates(i);
  encode(delta.embedding(i), config.dim, rows.packed(row));
  if (!config.embeddings_only)
    std::memcpy(rows.state(row), delta.state(i), sizeof(float) * delta.header().state_floats);
  rows.set_version(row, delta.version(i));
}

void read_rows(const Rows& rows, const DeltaPlan& plan, const DeltaWriter& out) noexcept {
  const DeltaHeader& header = plan.header;
  const DeltaLayout& at = plan.layout;
  const std::vector<uint32_t>& numbers = plan.rows;
  const size_t embedding_bytes = sizeof(float) * header.dim;
  const size_t state_bytes = sizeof(float) * header.state_floats;
  const DecodeRow decode = decoder(rows.layout().stored, RowType::kFloat32);
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (i + kAhead < numbers.size())
      rows.prefetch<0>(numbers[i + kAhead], sizeof(RowHeader) + rows.layout().embedding_bytes + state_bytes);
    const uint32_t row = numbers[i];
    const RowHeader& meta = rows.header(row);
    store_at<uint64_t>(out.column(at.ids), i, meta.id());
    store_at<uint64_t>(out.column(at.versions), i, rows.version(row));
    store_at<uint32_t>(out.column(at.first_seen), i, meta.first_seen_s);
    store_at<uint32_t>(out.column(at.last_seen), i, meta.last_seen_s);
    store_at<uint32_t>(out.column(at.updates), i, meta.updates);
    decode(rows.packed(row), header.dim, out.column(at.embeddings + i * embedding_bytes));
    if (state_bytes != 0) std::memcpy(out.column(at.states + i * state_bytes), rows.state(row), state_bytes);
  }
}

}  // namespace

bool Chunk::can_continue(const Cursor& cursor) const noexcept {
  if (cursor.incarnation == 0 || cursor.version == 0 || cursor.version < contents_.tombstones.horizon()) return false;
  return (cursor.incarnation == incarnation && cursor.version <= version) ||
         (cursor.incarnation == parent.incarnation && cursor.version <= parent.version);
}

void Chunk::plan_delta(uint32_t chunk, const Cursor& since, bool embeddings_only, DeltaPlan& out) const {
  const uint64_t from = can_continue(since) ? since.version : 0;
  DeltaHeader& header = out.header;
  header.embeddings_only = embeddings_only;
  header.chunk = chunk;
  header.num_chunks = config_.num_chunks;
  header.dim = config_.dim;
  if (!embeddings_only) {
    header.state_floats = config_.optimizer.state_floats(config_.dim);
    header.optimizer = static_cast<uint32_t>(config_.optimizer.kind);
  }
  header.incarnation = incarnation;
  header.parent_incarnation = parent.incarnation;
  header.branch_version = parent.version;
  header.from_version = from;
  header.to_version = version;
  header.clock_ms = clock_ms;
  out.watermarks = watermarks;
  if (from < version) {
    if (from == 0) out.rows.reserve(contents_.rows.size());
    contents_.rows.changed_since(from, out.rows);
    if (from != 0) contents_.tombstones.since(from, out.removed);
    if (!embeddings_only && contents_.sketch.version() > from) contents_.sketch.changed_since(from, out.sketch_blocks);
  }
  if (!DeltaWriter::settle(contents_.sketch, out)) throw std::bad_alloc();
}

bool Chunk::still_as(const DeltaPlan& plan) const noexcept {
  const DeltaHeader& h = plan.header;
  if (h.incarnation != incarnation || h.to_version != version || h.parent_incarnation != parent.incarnation ||
      h.clock_ms != clock_ms || plan.watermarks != watermarks)
    return false;
  const Rows& rows = contents_.rows;
  return std::all_of(plan.rows.begin(), plan.rows.end(), [&](uint32_t row) {
    return row < rows.end() && rows.in_use(row) && rows.version(row) > h.from_version;
  });
}

void Chunk::write_delta(const DeltaPlan& plan, uint8_t* data) const noexcept {
  const DeltaWriter out(plan, data);
  read_rows(contents_.rows, plan, out);
  out.write_removed();
  out.write_sketch(contents_.sketch);
}

Chunk::Verdict Chunk::judge(const DeltaView& delta) const noexcept {
  const DeltaHeader& h = delta.header();
  if (h.incarnation == incarnation && h.to_version <= version) return Verdict::kKnown;
  if (h.incarnation == parent.incarnation && h.to_version <= parent.version) return Verdict::kKnown;
  if (delta.full()) return Verdict::kReplace;
  const bool same = h.incarnation == incarnation;
  const bool child = h.parent_incarnation != 0 && h.parent_incarnation == incarnation && version <= h.branch_version;
  if ((same || child) && h.from_version <= version && version <= h.to_version) return Verdict::kContinue;
  return Verdict::kGap;
}

// An id that comes twice shows when it is inserted for the second time.
Status Chunk::build(const DeltaView& delta, const ChunkConfig& config, Contents& out) {
  const DeltaHeader& h = delta.header();
  if (!config.embeddings_only && !delta.read_sketch(out.sketch)) return Status::corrupt(kBadSketch);
  out.rows.reserve(h.num_rows);
  out.index.reserve(h.num_rows, out.rows);
  out.rows.set_newest(h.to_version);
  const EncodeRow encode = encoder(config.stored);
  constexpr size_t kGroup = 32;
  uint64_t hashes[kGroup];
  for (size_t base = 0; base < h.num_rows; base += kGroup) {
    const size_t count = std::min<size_t>(kGroup, h.num_rows - base);
    for (size_t i = 0; i < count; ++i) {
      hashes[i] = mix64(delta.id(base + i));
      out.index.prefetch(hashes[i]);
      out.index.prefetch_partner(hashes[i]);
    }
    for (size_t i = 0; i < count; ++i) {
      const uint64_t id = delta.id(base + i);
      const auto same = [&](uint32_t row) { return out.rows.header(row).id() == id; };
      if (out.index.find(hashes[i], same) != kNoRow) return Status::corrupt("has an id twice");
      const uint32_t row = out.rows.allocate(id);
      write_row(delta, base + i, config, encode, out.rows, row);
      out.index.insert(hashes[i], row, out.rows);
    }
  }
  out.tombstones.reset(h.to_version);
  return {};
}

void Chunk::replace(const DeltaView& delta, Contents& contents) noexcept {
  const DeltaHeader& h = delta.header();
  contents_.swap(contents);
  incarnation = h.incarnation;
  version = h.to_version;
  parent = {h.parent_incarnation, h.branch_version};
  clock_ms = h.clock_ms;
}

Status Chunk::continue_with(const DeltaView& delta, const Items& items, WriteScratch& scratch) {
  const DeltaHeader& h = delta.header();
  const bool counts = delta.has_sketch() && !config_.embeddings_only;
  Sketch sketch(0);
  if (counts) {
    sketch = contents_.sketch;
    if (!delta.read_sketch(sketch)) return Status::corrupt(kBadSketch);
  }
  contents_.tombstones.reserve(h.num_tombstones);
  uint32_t* rows = scratch.rows.sized(items.count);
  const Part whole[] = {part(items)};
  look_up<1>(std::span<const Part>(whole), sizeof(RowHeader),
             [rows](const Part&, size_t i, uint32_t row, const RowHeader*) { rows[i] = row; });
  insert_missing(items, rows);

  contents_.rows.set_newest(h.to_version);
  const EncodeRow encode = encoder(config_.stored);
  for (size_t i = 0; i < items.count; ++i) {
    write_row(delta, i, config_, encode, contents_.rows, rows[i]);
    contents_.tombstones.remove(items.ids[i]);
  }
  for (size_t i = 0; i < h.num_tombstones; ++i) {
    const Tombstone removed = delta.tombstone(i);
    const uint64_t hash = mix64(removed.id);
    const uint32_t row =
        contents_.index.find(hash, [&](uint32_t r) { return contents_.rows.header(r).id() == removed.id; });
    if (row != kNoRow) {
      contents_.index.erase(hash, row);
      contents_.rows.release(row);
    }
    contents_.tombstones.add(removed);
  }
  settle_removals();
  if (counts) std::swap(contents_.sketch, sketch);
  incarnation = h.incarnation;
  version = h.to_version;
  parent = {h.parent_incarnation, h.branch_version};
  clock_ms = std::max(clock_ms, h.clock_ms);
  return {};
}

}  // namespace embedstore
