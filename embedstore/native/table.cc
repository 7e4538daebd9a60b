#include "native/table.h"

#include <cstring>
#include <new>
#include <shared_mutex>

#include "native/quantize.h"

namespace embedstore {
namespace {

size_t width_of(RowType type) noexcept { return type == RowType::kFloat16 ? 2 : 4; }

}  // namespace

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
  Counters counters{pulled_rows_.load(), missed_rows_.load(), pushed_rows_.load(), inserted_rows_.load(), 0};
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    counters.tombstones += chunk->tombstones().size();
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

void Table::pull_group(const Chunk& chunk, const Items& items, const PullTarget& target, uint64_t& missed) const {
  const uint32_t dim = config_.dim;
  const size_t row_width = width_of(target.type) * dim;
  const size_t row_bytes = sizeof(RowHeader) + (target.rows != nullptr ? layout_.embedding_bytes : 0);
  const DecodeRow decode = decoder(config_.stored, target.type);
  const DecodeRow convert = decoder(RowType::kFloat32, target.type);
  auto* out = static_cast<uint8_t*>(target.rows);
  Scratch<float> initial;
  if (config_.init_on_miss && out != nullptr) initial.sized(dim);
  const std::shared_lock lock(chunk.mutex);
  const Rows& rows = chunk.rows();
  chunk.visit_rows<0>(items, row_bytes, [&](size_t i, uint32_t row) {
    const size_t at = items.sources[i];
    const bool found = row != kNoRow;
    missed += !found;
    if (out != nullptr) {
      uint8_t* to = out + at * row_width;
      if (found) {
        decode(rows.packed(row), dim, to);
      } else if (config_.init_on_miss) {
        config_.init.fill(items.ids[i], initial.data(), dim);
        convert(reinterpret_cast<const std::byte*>(initial.data()), dim, to);
      } else {
        std::memset(to, 0, row_width);
      }
    }
    if (target.found != nullptr) target.found[at] = found;
    if (target.updates == nullptr) return;
    target.updates[at] = found ? rows.header(row).updates : 0;
    target.first_seen_s[at] = found ? rows.header(row).first_seen_s : 0;
    target.last_seen_s[at] = found ? rows.header(row).last_seen_s : 0;
  });
}

Status Table::pull(const uint64_t* ids, size_t count, const PullTarget& target) const try {
  thread_local Partition partition;
  partition.build(ids, nullptr, count, chunk_bits_);
  if (Status s = check_owned(partition); !s.ok()) return s;
  uint64_t missed = 0;
  for (const Partition::Group& group : partition.groups())
    pull_group(chunk_at(group.chunk), partition.items(group), target, missed);
  pulled_rows_.fetch_add(count, std::memory_order_relaxed);
  missed_rows_.fetch_add(missed, std::memory_order_relaxed);
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::contains(const uint64_t* ids, size_t count, uint8_t* found) const try {
  thread_local Partition partition;
  partition.build(ids, nullptr, count, chunk_bits_);
  if (Status s = check_owned(partition); !s.ok()) return s;
  PullTarget target;
  target.found = found;
  uint64_t missed = 0;
  for (const Partition::Group& group : partition.groups())
    pull_group(chunk_at(group.chunk), partition.items(group), target, missed);
  return {};
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
    if (!rows.in_use(row)) continue;
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
