#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <shared_mutex>

#include "native/table.h"

namespace embedstore {
namespace {

constexpr size_t kBufferedDeltaMax = size_t{64} << 10;

}  // namespace

Status Table::watermarks(DistinctWatermarks& out) const try {
  out.clear();
  for (uint32_t i = 0; i < num_owned(); ++i) {
    Watermarks marks;
    {
      const std::shared_lock lock(chunks_[i]->mutex);
      marks = chunks_[i]->watermarks;
    }
    auto same = std::find_if(out.rbegin(), out.rend(), [&](const auto& known) { return known.first == marks; });
    if (same == out.rend())
      same = std::find_if(out.rbegin(), out.rend(), [&](const auto& known) { return *known.first == *marks; });
    if (same == out.rend()) {
      out.push_back({std::move(marks), {}});
      same = out.rbegin();
    }
    same->second.push_back(config_.chunk_begin + i);
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::raise_all(const WatermarkList& list, bool only_new) try {
  std::vector<std::pair<Watermarks, Watermarks>> known;
  for (const auto& chunk : chunks_) {
    const std::unique_lock lock(chunk->mutex);
    auto same =
        std::find_if(known.begin(), known.end(), [&](const auto& pair) { return pair.first == chunk->watermarks; });
    if (same == known.end()) {
      known.emplace_back(chunk->watermarks, raised(chunk->watermarks, list, only_new));
      same = known.end() - 1;
    }
    chunk->watermarks = same->second;
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::forget_stream(const std::string& stream) try {
  std::vector<std::pair<Watermarks, Watermarks>> known;
  for (const auto& chunk : chunks_) {
    const std::unique_lock lock(chunk->mutex);
    auto same =
        std::find_if(known.begin(), known.end(), [&](const auto& pair) { return pair.first == chunk->watermarks; });
    if (same == known.end()) {
      known.emplace_back(chunk->watermarks, without(chunk->watermarks, stream));
      same = known.end() - 1;
    }
    chunk->watermarks = same->second;
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

Status Table::raise_one(uint32_t number, const WatermarkList& list, int64_t clock_ms) try {
  if (Status s = check_chunk(number); !s.ok()) return s;
  Chunk& chunk = chunk_at(number);
  const std::unique_lock lock(chunk.mutex);
  chunk.watermarks = raised(chunk.watermarks, list);
  chunk.advance_clock(clock_ms);
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

void Table::states(std::vector<ChunkState>& out) const {
  out.clear();
  for (const auto& chunk : chunks_) {
    const std::shared_lock lock(chunk->mutex);
    out.push_back({chunk->incarnation, chunk->version, chunk->clock_ms});
  }
}

Status Table::branch(const std::vector<uint64_t>& incarnations) {
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const std::unique_lock lock(chunks_[i]->mutex);
    chunks_[i]->parent = {chunks_[i]->incarnation, chunks_[i]->version};
    chunks_[i]->incarnation = incarnations[i];
  }
  return {};
}

// A large delta is written straight to where it is wanted. That memory is asked for between two visits to the chunk,
// because the caller may have to wait for it; if the chunk moved on, the second attempt goes through a buffer.
Status Table::delta(uint32_t number, const Cursor& since, bool embeddings_only, const Allocate& allocate) const try {
  if (Status s = check_chunk(number); !s.ok()) return s;
  if (config_.embeddings_only && !embeddings_only)
    return Status::invalid("embeddings_only", "must be true: this table holds no optimizer state");
  const Chunk& chunk = chunk_at(number);
  uint8_t* out = nullptr;
  for (const size_t buffered_max : {kBufferedDeltaMax, std::numeric_limits<size_t>::max()}) {
    DeltaPlan plan;
    std::unique_ptr<uint8_t[]> buffer;
    {
      const std::shared_lock lock(chunk.mutex);
      chunk.plan_delta(number, since, embeddings_only, plan);
      if (plan.layout.total <= buffered_max) {
        buffer = std::make_unique_for_overwrite<uint8_t[]>(plan.layout.total);
        chunk.write_delta(plan, buffer.get());
      }
    }
    out = allocate(plan.layout.total);
    if (buffer == nullptr) {
      const std::shared_lock lock(chunk.mutex);
      if (!chunk.still_as(plan)) continue;
      chunk.write_delta(plan, out);
    } else {
      std::memcpy(out, buffer.get(), plan.layout.total);
    }
    DeltaWriter::seal(plan.layout, out);
    break;
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

// Chunks that are restored or followed one by one normally carry the same watermarks: they share the last set.
Watermarks Table::shared_set(const WatermarkList& list) {
  const std::lock_guard lock(recent_mutex_);
  if (recent_->list() != list) recent_ = std::make_shared<const WatermarkSet>(list);
  return recent_;
}

Status Table::check_delta(const DeltaView& delta) const {
  const DeltaHeader& h = delta.header();
  if (h.num_chunks != config_.num_chunks) return Status::corrupt("is of a table with another number of chunks");
  if (h.dim != config_.dim) return Status::corrupt("is of a table with another dim");
  if (h.embeddings_only) {
    if (!config_.embeddings_only) return Status::corrupt("has embeddings only, and this table needs optimizer state");
  } else if (h.optimizer != static_cast<uint32_t>(config_.optimizer.kind) ||
             h.state_floats != config_.optimizer.state_floats(config_.dim)) {
    return Status::corrupt("is of a table with another optimizer");
  }
  if (!config_.embeddings_only && h.sketch_slots > Sketch(config_.sketch_bytes_max()).slots_max())
    return Status::corrupt("has a larger sketch than the table's admission allows");
  return check_chunk(h.chunk);
}

Status Table::apply(const uint8_t* data, size_t num_bytes, uint32_t& number, Cursor& now) try {
  DeltaView delta;
  if (Status s = DeltaView::parse(data, num_bytes, delta); !s.ok()) return s;
  if (Status s = check_delta(delta); !s.ok()) return s;
  number = delta.header().chunk;
  Chunk& chunk = chunk_at(number);
  const Watermarks exact = shared_set(delta.watermarks());

  // Outlives the lock: what a replaced chunk held is freed outside of it.
  Chunk::Contents contents(layout_, pools_, config_.sketch_bytes_max());
  bool built = false;
  if (delta.full()) {
    {
      const std::shared_lock lock(chunk.mutex);
      built = chunk.judge(delta) == Chunk::Verdict::kReplace;
    }
    if (built)
      if (Status s = Chunk::build(delta, config_, contents); !s.ok()) return s;
  }
  thread_local WriteScratch scratch;
  Partition partition;
  Items items{};
  if (!delta.full()) {
    std::vector<uint64_t> ids(delta.header().num_rows);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = delta.id(i);
    partition.build(ids.data(), nullptr, ids.size(), chunk_bits_);
    if (!ids.empty()) items = partition.items(partition.groups().front());
  }
  const std::unique_lock lock(chunk.mutex);
  switch (chunk.judge(delta)) {
    case Chunk::Verdict::kReplace:
      if (!built)  // another delta came in between
        if (Status s = Chunk::build(delta, config_, contents); !s.ok()) return s;
      chunk.replace(delta, contents);
      chunk.watermarks = exact;
      break;
    case Chunk::Verdict::kContinue:
      if (Status s = chunk.continue_with(delta, items, scratch); !s.ok()) return s;
      chunk.watermarks = exact;
      break;
    case Chunk::Verdict::kKnown:
      if (delta.header().incarnation == chunk.incarnation && delta.header().to_version == chunk.version) {
        chunk.watermarks = raised(chunk.watermarks, delta.watermarks());
        chunk.advance_clock(delta.header().clock_ms);
      }
      break;
    case Chunk::Verdict::kGap:
      return {Code::kDeltaGap, "delta",
              "begins at version " + std::to_string(delta.header().from_version) + " of " +
                  std::to_string(delta.header().incarnation) + ", the chunk stands at " +
                  std::to_string(chunk.version) + " of " + std::to_string(chunk.incarnation)};
  }
  now = {chunk.incarnation, chunk.version};
  return {};
} catch (const std::bad_alloc&) {
  return Status::no_memory();
}

}  // namespace embedstore
