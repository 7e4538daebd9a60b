// Cutting a batch of ids: by chunk, by shard, and into distinct ids. Every id is hashed once here.
//
// The objects are scratch memory of one call and keep their buffers for the next; use one per thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace embedstore {

// A growing array whose elements are not initialised.
template <class T>
class Scratch {
 public:
  // Contents are lost when it grows, and when a small request follows a large one, which gives the memory back.
  // Throws std::bad_alloc.
  T* sized(size_t count) {
    if (count > capacity_ || (capacity_ > kKeptMax && count < capacity_ / 8)) {
      data_.reset();
      capacity_ = 0;
      data_ = std::make_unique_for_overwrite<T[]>(count + count / 4);
      capacity_ = count + count / 4;
    }
    return data_.get();
  }
  T* data() const noexcept { return data_.get(); }
  T& operator[](size_t i) const noexcept { return data_[i]; }

 private:
  static constexpr size_t kKeptMax = 1 << 17;

  std::unique_ptr<T[]> data_;
  size_t capacity_ = 0;
};

// Ids with their hashes, and where each stood in the caller's batch.
struct Items {
  const uint64_t* ids;
  const uint64_t* hashes;
  const uint32_t* sources;
  size_t count;
};

// A batch sorted by chunk: every chunk is locked once. The order inside a chunk is the caller's.
class Partition {
 public:
  struct Group {
    uint32_t chunk;
    uint32_t begin;
    uint32_t end;
  };

  // `hashes` may be null. Throws std::bad_alloc.
  void build(const uint64_t* ids, const uint64_t* hashes, size_t count, unsigned chunk_bits);

  const std::vector<Group>& groups() const noexcept { return groups_; }  // ascending by chunk, none empty
  Items items(const Group& group) const noexcept {
    return {ids_.data() + group.begin, hashes_.data() + group.begin, sources_.data() + group.begin,
            size_t{group.end} - group.begin};
  }

 private:
  void sort_few(const uint64_t* ids, size_t count, unsigned chunk_bits);
  void sort_many(const uint64_t* ids, size_t count, unsigned chunk_bits);

  std::vector<Group> groups_;
  std::vector<uint32_t> bounds_;
  std::vector<uint64_t> keys_;
  Scratch<uint64_t> ids_;
  Scratch<uint64_t> hashes_;
  Scratch<uint32_t> sources_;
  Scratch<uint64_t> input_hashes_;
};

// How many of the ids are repeats of an earlier one. Needs much less memory at a time than Distinct. Throws
// std::bad_alloc.
size_t count_repeats(const uint64_t* ids, size_t count);

// The distinct ids of a batch in order of first occurrence, and a chain of the occurrences of each.
class Distinct {
 public:
  static constexpr uint32_t kEnd = 0xFFFFFFFF;

  // Throws std::bad_alloc.
  void build(const uint64_t* ids, size_t count);

  size_t size() const noexcept { return size_; }
  const uint64_t* ids() const noexcept { return ids_.data(); }
  const uint64_t* hashes() const noexcept { return hashes_.data(); }
  // First occurrence of distinct id u, and the next one after occurrence i (kEnd: none).
  uint32_t first(uint32_t u) const noexcept { return firsts_[u]; }
  const uint32_t* firsts() const noexcept { return firsts_.data(); }
  uint32_t next(uint32_t i) const noexcept { return nexts_[i]; }
  // The distinct id of occurrence i.
  uint32_t distinct_of(uint32_t i) const noexcept { return distinct_[i]; }

 private:
  size_t size_ = 0;
  Scratch<uint64_t> ids_;
  Scratch<uint64_t> hashes_;
  Scratch<uint32_t> firsts_;
  Scratch<uint32_t> lasts_;
  Scratch<uint32_t> nexts_;
  Scratch<uint32_t> distinct_;
  Scratch<uint32_t> slots_;
};

// Positions of the ids grouped by owning shard (`order`, stable), and where each shard's begin (`bounds`,
// num_shards + 1 entries). Throws std::bad_alloc.
void split_by_shard(const uint64_t* ids, size_t count, uint32_t num_chunks, uint32_t num_shards, int64_t* order,
                    int64_t* bounds);

}  // namespace embedstore
