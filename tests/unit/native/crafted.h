// Deltas for tests: read from tables, and put together by hand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "native/crc32c.h"
#include "native/delta.h"
#include "native/hash.h"
#include "native/table.h"

namespace embedstore::test {

using Bytes = std::vector<uint8_t>;

constexpr uint32_t kDim = 3;
constexpr uint32_t kChunks = 2;
constexpr size_t kSketchBytes = size_t{16} << 10;

inline TableConfig config_of(bool embeddings_only = false) {
  TableConfig config;
  config.num_chunks = kChunks;
  config.chunk_end = kChunks;
  config.dim = kDim;
  config.optimizer.kind = Optimizer::Kind::kAdagrad;
  config.embeddings_only = embeddings_only;
  config.admission.kind = Admission::Kind::kMinCount;
  config.admission.min_count = 1'000'000;
  config.admission.memory_bytes = kSketchBytes * kChunks;
  config.lr = 1.0f;
  return config;
}

inline std::vector<uint64_t> ids_of_chunk(uint32_t chunk, size_t count, uint64_t from = 0) {
  std::vector<uint64_t> ids;
  for (uint64_t id = from; ids.size() < count; ++id)
    if (chunk_of(mix64(id), log2_of(kChunks)) == chunk) ids.push_back(id);
  return ids;
}

// A delta put together by hand: what a table could say, and what none would.
struct Crafted {
  uint64_t from = 0;
  uint64_t to = 1;
  uint64_t incarnation = 500;
  std::vector<uint64_t> ids = {};
  std::vector<Tombstone> removed = {};
  const Sketch* sketch = nullptr;
  bool embeddings_only = false;

  Bytes encode() const {
    static const Sketch kNone(0);
    DeltaPlan plan;
    DeltaHeader& h = plan.header;
    h.embeddings_only = embeddings_only;
    h.num_chunks = kChunks;
    h.dim = kDim;
    h.state_floats = embeddings_only ? 0 : kDim;
    h.optimizer = embeddings_only ? 0 : 3;
    h.incarnation = incarnation;
    h.from_version = from;
    h.to_version = to;
    h.clock_ms = 5'000;
    plan.watermarks = std::make_shared<const WatermarkSet>(WatermarkList{{"a", 7}, {"client/1", 9}});
    plan.rows.resize(ids.size());
    plan.removed = removed;
    if (sketch != nullptr) sketch->changed_since(from, plan.sketch_blocks);
    CHECK(DeltaWriter::settle(sketch == nullptr ? kNone : *sketch, plan));
    Bytes bytes(plan.layout.total, 0);
    const DeltaWriter out(plan, bytes.data());
    for (size_t i = 0; i < ids.size(); ++i) {
      store_at<uint64_t>(out.column(plan.layout.ids), i, ids[i]);
      store_at<uint64_t>(out.column(plan.layout.versions), i, to);
      for (uint32_t d = 0; d < kDim; ++d)
        store_at<float>(out.column(plan.layout.embeddings), i * kDim + d, static_cast<float>(ids[i] % 100 + d));
    }
    out.write_removed();
    if (sketch != nullptr) out.write_sketch(*sketch);
    DeltaWriter::seal(plan.layout, bytes.data());
    return bytes;
  }
};

inline Bytes delta(const Table& table, uint32_t chunk, Cursor since = {}, bool embeddings_only = false) {
  Bytes bytes;
  const auto allocate = [&bytes](size_t count) {
    bytes.assign(count, 0xEE);
    return bytes.data();
  };
  CHECK(table.delta(chunk, since, embeddings_only, allocate).ok());
  return bytes;
}

inline std::string digest(const Table& table) {
  std::string all;
  for (uint32_t chunk = 0; chunk < table.num_owned(); ++chunk) {
    const Bytes bytes = delta(table, chunk, {}, table.config().embeddings_only);
    all.append(bytes.begin(), bytes.end());
  }
  return all;
}

inline Status take(Table& table, const Bytes& bytes) {
  uint32_t chunk = 0;
  Cursor now;
  return table.apply(bytes.data(), bytes.size(), chunk, now);
}

inline void meet(Sketch& sketch, Random& random, size_t ids, uint64_t version) {
  sketch.reserve(ids);
  for (size_t i = 0; i < ids; ++i) {
    const auto occurrences = static_cast<uint32_t>(1 + random.below(9));
    sketch.add(random.next(), occurrences, version);
  }
}

// What lies behind the watermarks of a delta is the same, but for the checksum.
inline bool same_contents(const Bytes& a, const Bytes& b) {
  return a.size() == b.size() &&
         std::equal(a.begin() + DeltaHeader::kBytes, a.end() - 4, b.begin() + DeltaHeader::kBytes);
}

inline void seal(Bytes& bytes) {
  if (bytes.size() <= 4) return;
  const uint32_t crc = crc32c(bytes.data(), bytes.size() - 4);
  std::memcpy(bytes.data() + bytes.size() - 4, &crc, 4);
}

}  // namespace embedstore::test
