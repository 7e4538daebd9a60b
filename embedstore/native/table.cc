#include "native/table.h"

#include <cstring>
#include <new>
#include <shared_mutex>

#include "native/quantize.h"

namespace embedstore {
namespace {

size_t width_of(RowType type) noexcept { return type == RowType::kFloat16 ? 2 : 4; }

void write_meta(const RowHeader* header, size_t at, const PullTarget& target) noexcept {
  constexpr RowHeader kNone{};
  const RowHeader& known = header != nullptr ? *header : kNone;
  if (target.found != nullptr) target.found[at] = header != nullptr;
  if (target.updates != nullptr) target.updates[at] = known.updates;
  if (target.first_seen_s != nullptr) target.first_seen_s[at] = known.first_seen_s;
  if (target.last_seen_s != nullptr) target.last_seen_s[at] = known.last_seen_s;
}

}  // namespace

size_t bytes_per_row(const TableConfig& config) noexcept {
  constexpr size_t kIndexAndVersion = 24;
  const uint32_t state_floats = config.embeddings_only ? 0 : config.optimizer.state_floats(config.dim);
  return RowLayout(config.dim, state_floats, config.stored).row_bytes + kIndexAndVersion;
}

Table::Table(const TableConfig& config, const std::vector<uint64_t>& incarnations)
    : config_(config),
      layout_(config.dim, config.embeddings_only ? 0 : config.optimizer.state_floats(config.dim), config.stored),
      chunk_bits_(log2_of(config.num_chunks)),
      pools_(layout_.slab_bytes),
      lr_(config.lr) {
  chunks_.reserve(num_owned());
  for (uint32_t i = 0; i < num_owned(); ++i) {
    chunks_.push_back(std::make_unique<Chunk>(config_, layout_, pools_));
    chunks_.back()->incarnation = incarnations[i];
    chunks_.back()->limits = config_.limits;
  }
}

uint64_t Table::size() const {
  uint64_t rows = 0;
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    rows += chunk->rows().size();
  }
  return rows;
}

uint64_t Table::memory_bytes() const {
  uint64_t bytes = sizeof(Table);
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    bytes += chunk->memory_bytes() + sizeof(void*);
  }
  return bytes;
}

Counters Table::counters() const {
  Counters counters{pulled_rows_.load(), missed_rows_.load(), {}, 0, 0, 0};
  {
    const std::lock_guard lock(counters_mutex_);
    counters.changes = changes_;
  }
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    counters.tombstones += chunk->tombstones().size();
    counters.sketch_bytes += chunk->sketch().memory_bytes();
    counters.sketch_halvings += chunk->sketch().halvings();
  }
  return counters;
}

Status Table::check_owned(const Partition& partition) const {
  for (const Partition::Group& group : partition.groups()) {
    if (Status s = check_chunk(group.chunk); !s.ok()) return s;
  }
  return {};
}

Status Table::check_chunk(uint32_t chunk) const {
  if (owns(chunk)) return {};
  return {Code::kWrongShard, "ids",
          "chunk " + std::to_string(chunk) + " is not one of the owned chunks [" + std::to_string(config_.chunk_begin) +
              ", " + std::to_string(config_.chunk_end) + ")"};
}

void Table::read_window(std::span<const Part> parts, const PullTarget& target, float* initial, uint64_t& missed) const {
  const uint32_t dim = config_.dim;
  const size_t row_width = width_of(target.type) * dim;
  auto* out = static_cast<uint8_t*>(target.rows);
  const size_t row_bytes = sizeof(RowHeader) + (out != nullptr ? layout_.embedding_bytes : 0);
  const uint64_t* ids = parts.front().items.ids;
  const uint32_t* sources = parts.front().items.sources;
  const DecodeRow decode = decoder(config_.stored, target.type);
  const DecodeRow convert = decoder(RowType::kFloat32, target.type);
  const bool meta = target.found != nullptr || target.updates != nullptr || target.first_seen_s != nullptr ||
                    target.last_seen_s != nullptr;
  const Part* current = nullptr;
  uint32_t alive_since = 0;
  look_up<0>(parts, row_bytes, [&](const Part& part, size_t i, uint32_t, const RowHeader* header) {
    if (&part != current) [[unlikely]] {
      current = &part;
      alive_since = part.chunk->alive_since_s();
    }
    if (header != nullptr && header->last_seen_s < alive_since) header = nullptr;
    missed += header == nullptr;
    if (out != nullptr) {
      uint8_t* row = out + sources[i] * row_width;
      if (header != nullptr) [[likely]] {
        decode(Rows::packed(header), dim, row);
      } else if (initial != nullptr) {
        config_.init.fill(ids[i], initial, dim);
        convert(reinterpret_cast<const std::byte*>(initial), dim, row);
      } else {
        std::memset(row, 0, row_width);
      }
    }
    if (meta) write_meta(header, sources[i], target);
  });
}

Status Table::read(const uint64_t* ids, size_t count, const PullTarget& target, bool wait, uint64_t& missed) const {
  thread_local Partition partition;
  thread_local std::vector<Part> parts;
  thread_local std::vector<std::shared_lock<FairMutex>> locks;
  partition.build(ids, nullptr, count, chunk_bits_);
  if (Status s = check_owned(partition); !s.ok()) return s;
  Scratch<float> initial;
  if (config_.init_on_miss && target.rows != nullptr) initial.sized(config_.dim);
  const auto& groups = partition.groups();
  parts.reserve(groups.size());
  locks.reserve(groups.size());
  for (size_t next = 0; next < groups.size();) {
    for (size_t items = 0; next < groups.size() && items < kWindowItems; ++next) {
      Chunk& chunk = *chunks_[groups[next].chunk - config_.chunk_begin];
      if (wait) {
        locks.emplace_back(chunk.mutex);
      } else if (!locks.emplace_back(chunk.mutex, std::try_to_lock)) {
        parts.clear();
        locks.clear();
        return {Code::kBusy, "", "a chunk is being changed"};
      }
      parts.push_back(chunk.part(partition.items(groups[next])));
      items += parts.back().items.count;
    }
    read_window(parts, target, initial.data(), missed);
    parts.clear();
    locks.clear();
  }
  return {};
}

Status Table::pull(const uint64_t* ids, size_t count, const PullTarget& target) const {
  return counted_read(ids, count, target, true);
}

Status Table::try_pull(const uint64_t* ids, size_t count, const PullTarget& target) const {
  return counted_read(ids, count, target, false);
}

Status Table::counted_read(const uint64_t* ids, size_t count, const PullTarget& target, bool wait) const try {
  uint64_t missed = 0;
  if (Status s = read(ids, count, target, wait, missed); !s.ok()) return s;
  pulled_rows_.fetch_add(count, std::memory_order_relaxed);
  missed_rows_.fetch_add(missed, std::memory_order_relaxed);
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::peek(const uint64_t* ids, size_t count, const PullTarget& target) const try {
  uint64_t missed = 0;
  return read(ids, count, target, true, missed);
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::scan(uint32_t chunk_number, ScannedChunk& out) const try {
  if (Status s = check_chunk(chunk_number); !s.ok()) return s;
  const Chunk& chunk = chunk_at(chunk_number);
  const std::shared_lock lock(chunk.mutex);
  const Rows& rows = chunk.rows();
  const size_t count = rows.size();
  out.ids.reserve(count);
  out.updates.reserve(count);
  out.first_seen_s.reserve(count);
  out.last_seen_s.reserve(count);
  out.embeddings.reserve(count * config_.dim);
  const DecodeRow decode = decoder(config_.stored, RowType::kFloat32);
  for (uint32_t row = 0; row < rows.end(); ++row) {
    if (!rows.in_use(row) || !chunk.is_alive(row)) continue;
    const RowHeader& header = rows.header(row);
    out.ids.push_back(header.id());
    out.updates.push_back(header.updates);
    out.first_seen_s.push_back(header.first_seen_s);
    out.last_seen_s.push_back(header.last_seen_s);
    out.embeddings.resize(out.embeddings.size() + config_.dim);
    decode(rows.packed(row), config_.dim, out.embeddings.data() + out.embeddings.size() - config_.dim);
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

}  // namespace embedstore
