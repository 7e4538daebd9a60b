// What the figures are compared with: the same work done by code that knows each row's place already, and by the
// common C++ hash maps. A plain C interface, loaded by benchmarks/reference.py; row numbers are trusted.
//
// Every function works on arrays it is given and may run in any thread; functions that change rows or a map need it
// alone.

#include <sys/mman.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#if __has_include(<libcuckoo/cuckoohash_map.hh>)
#include <libcuckoo/cuckoohash_map.hh>
#define HAVE_LIBCUCKOO 1
#endif

namespace {

constexpr size_t kAhead = 16;
constexpr size_t kLineFloats = 16;

inline void prefetch_row(const float* row, size_t width) {
  for (size_t i = 0; i < width; i += kLineFloats) __builtin_prefetch(row + i, 0, 3);
}

inline void prefetch_row_to_write(const float* row, size_t width) {
  for (size_t i = 0; i < width; i += kLineFloats) __builtin_prefetch(row + i, 1, 3);
}

inline void adagrad_row(float* __restrict weight, float* __restrict sum, const float* __restrict grad, size_t dim,
                        float lr, float eps) {
  for (size_t i = 0; i < dim; ++i) {
    sum[i] += grad[i] * grad[i];
    weight[i] -= lr * grad[i] / (std::sqrt(sum[i]) + eps);
  }
}

// `step_size` and `root_correction` hold what Adam's bias corrections come to at a step that all rows share.
inline void adam_row(float* __restrict weight, float* __restrict first, float* __restrict second,
                     const float* __restrict grad, size_t dim, float step_size, float root_correction) {
  constexpr float kBeta1 = 0.9f, kBeta2 = 0.999f, kEps = 1e-8f;
  for (size_t i = 0; i < dim; ++i) {
    first[i] = kBeta1 * first[i] + (1.0f - kBeta1) * grad[i];
    second[i] = kBeta2 * second[i] + (1.0f - kBeta2) * (grad[i] * grad[i]);
    weight[i] -= step_size * first[i] / (std::sqrt(second[i]) * root_correction + kEps);
  }
}

// Many sums, because one would be a chain of dependent additions.
inline float mean_square(const float* __restrict grad, size_t dim) {
  float sums[16] = {};
  size_t i = 0;
  for (; i + 16 <= dim; i += 16)
    for (size_t j = 0; j < 16; ++j) sums[j] += grad[i + j] * grad[i + j];
  for (; i < dim; ++i) sums[0] += grad[i] * grad[i];
  float sum = 0;
  for (float part : sums) sum += part;
  return sum / static_cast<float>(dim);
}

// Runs step(row, gradient) on rows that are on their way to the cache already.
template <class Step>
inline void each_known(float* rows, size_t width, const uint64_t* numbers, size_t n, const float* grads, size_t dim,
                       Step step) {
  for (size_t k = 0; k < n && k < kAhead; ++k) prefetch_row_to_write(rows + numbers[k] * width, width);
  for (size_t k = 0; k < n; ++k) {
    if (k + kAhead < n) prefetch_row_to_write(rows + numbers[k + kAhead] * width, width);
    step(rows + numbers[k] * width, grads + k * dim);
  }
}

// splitmix64's finalizer: std::hash of an integer is the integer itself, which is no hash.
struct Mix {
  size_t operator()(uint64_t x) const noexcept {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  }
};

// A map from id to a row of floats, as each library is commonly used for it.
struct Map {
  virtual ~Map() = default;
  virtual void assign(const uint64_t* ids, size_t n, const float* rows, size_t dim) = 0;
  virtual void find(const uint64_t* ids, size_t n, float* out, size_t dim) = 0;
  virtual void erase(const uint64_t* ids, size_t n) = 0;
  virtual void adagrad(const uint64_t* ids, size_t n, const float* grads, size_t dim, float lr, float eps) = 0;
};

// std::unordered_map to the number of a row in slabs of 8192; numbers of erased rows are used again.
class StdMap final : public Map {
 public:
  explicit StdMap(size_t width) : width_(width) {}

  void assign(const uint64_t* ids, size_t n, const float* rows, size_t dim) override {
    for (size_t k = 0; k < n; ++k) {
      const auto [entry, fresh] = numbers_.try_emplace(ids[k], 0);
      if (fresh) entry->second = unused();
      std::memcpy(row(entry->second), rows + k * dim, dim * sizeof(float));
    }
  }

  void find(const uint64_t* ids, size_t n, float* out, size_t dim) override {
    for (size_t k = 0; k < n; ++k) {
      const auto entry = numbers_.find(ids[k]);
      if (entry != numbers_.end()) std::memcpy(out + k * dim, row(entry->second), dim * sizeof(float));
    }
  }

  void erase(const uint64_t* ids, size_t n) override {
    for (size_t k = 0; k < n; ++k) {
      const auto entry = numbers_.find(ids[k]);
      if (entry == numbers_.end()) continue;
      free_.push_back(entry->second);
      numbers_.erase(entry);
    }
  }

  void adagrad(const uint64_t* ids, size_t n, const float* grads, size_t dim, float lr, float eps) override {
    for (size_t k = 0; k < n; ++k) {
      const auto entry = numbers_.find(ids[k]);
      if (entry == numbers_.end()) continue;
      float* weight = row(entry->second);
      adagrad_row(weight, weight + dim, grads + k * dim, dim, lr, eps);
    }
  }

 private:
  static constexpr size_t kSlab = 8192;
  float* row(size_t number) { return slabs_[number / kSlab].get() + number % kSlab * width_; }

  uint32_t unused() {
    if (!free_.empty()) {
      const uint32_t number = free_.back();
      free_.pop_back();
      return number;
    }
    if (end_ % kSlab == 0) slabs_.push_back(std::make_unique<float[]>(kSlab * width_));
    return end_++;
  }

  size_t width_;
  uint32_t end_ = 0;
  std::vector<uint32_t> free_;
  std::unordered_map<uint64_t, uint32_t, Mix> numbers_;
  std::vector<std::unique_ptr<float[]>> slabs_;
};

#ifdef HAVE_LIBCUCKOO
// libcuckoo with the row as the value.
template <size_t kWidth>
class CuckooMap final : public Map {
 public:
  void assign(const uint64_t* ids, size_t n, const float* rows, size_t dim) override {
    for (size_t k = 0; k < n; ++k) {
      std::array<float, kWidth> value{};
      std::memcpy(value.data(), rows + k * dim, dim * sizeof(float));
      map_.insert_or_assign(ids[k], value);
    }
  }

  void find(const uint64_t* ids, size_t n, float* out, size_t dim) override {
    for (size_t k = 0; k < n; ++k) {
      map_.find_fn(ids[k], [&](const auto& row) { std::memcpy(out + k * dim, row.data(), dim * sizeof(float)); });
    }
  }

  void erase(const uint64_t* ids, size_t n) override {
    for (size_t k = 0; k < n; ++k) map_.erase(ids[k]);
  }

  void adagrad(const uint64_t* ids, size_t n, const float* grads, size_t dim, float lr, float eps) override {
    for (size_t k = 0; k < n; ++k) {
      map_.update_fn(ids[k],
                     [&](auto& row) { adagrad_row(row.data(), row.data() + dim, grads + k * dim, dim, lr, eps); });
    }
  }

 private:
  libcuckoo::cuckoohash_map<uint64_t, std::array<float, kWidth>, Mix> map_;
};
#endif

}  // namespace

extern "C" {

// Zeroed memory on huge pages where the system grants them; null when there is none.
float* ref_rows_new(size_t num_floats) {
  void* memory = mmap(nullptr, num_floats * sizeof(float), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, num_floats * sizeof(float), MADV_HUGEPAGE);
  return static_cast<float*>(memory);
}

void ref_rows_free(float* rows, size_t num_floats) { munmap(rows, num_floats * sizeof(float)); }

// out[k] = the first `dim` floats of row numbers[k]; rows are `width` floats apart.
void ref_gather(const float* rows, size_t width, const uint64_t* numbers, size_t n, size_t dim, float* out) {
  for (size_t k = 0; k < n && k < kAhead; ++k) prefetch_row(rows + numbers[k] * width, dim);
  for (size_t k = 0; k < n; ++k) {
    if (k + kAhead < n) prefetch_row(rows + numbers[k + kAhead] * width, dim);
    std::memcpy(out + k * dim, rows + numbers[k] * width, dim * sizeof(float));
  }
}

// Rows are `dim` weights and `dim` accumulators.
void ref_adagrad(float* rows, const uint64_t* numbers, size_t n, const float* grads, size_t dim, float lr, float eps) {
  each_known(rows, 2 * dim, numbers, n, grads, dim,
             [=](float* row, const float* grad) { adagrad_row(row, row + dim, grad, dim, lr, eps); });
}

// Rows are `dim` weights and one accumulator, `width` apart.
void ref_rowwise_adagrad(float* rows, size_t width, const uint64_t* numbers, size_t n, const float* grads, size_t dim,
                         float lr, float eps) {
  each_known(rows, width, numbers, n, grads, dim, [=](float* row, const float* grad) {
    row[dim] += mean_square(grad, dim);
    const float step = lr / (std::sqrt(row[dim]) + eps);
    for (size_t i = 0; i < dim; ++i) row[i] -= step * grad[i];
  });
}

// Rows are `dim` weights and the two moments; `step` counts the calls from 1.
void ref_adam(float* rows, const uint64_t* numbers, size_t n, const float* grads, size_t dim, float lr, uint64_t step) {
  const auto t = static_cast<double>(step);
  const auto step_size = static_cast<float>(lr / (1.0 - std::pow(0.9, t)));
  const auto root_correction = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(0.999, t)));
  each_known(rows, 3 * dim, numbers, n, grads, dim, [=](float* row, const float* grad) {
    adam_row(row, row + dim, row + 2 * dim, grad, dim, step_size, root_correction);
  });
}

// Copies the rows whose version is above `cursor` and their ids; returns how many.
size_t ref_changed(const uint64_t* versions, const uint64_t* ids, size_t n, uint64_t cursor, const float* rows,
                   size_t width, uint64_t* out_ids, float* out) {
  size_t found = 0;
  for (size_t k = 0; k < n; ++k) {
    if (versions[k] <= cursor) continue;
    out_ids[found] = ids[k];
    std::memcpy(out + found * width, rows + k * width, width * sizeof(float));
    ++found;
  }
  return found;
}

Map* ref_std_new(size_t width) { return new StdMap(width); }

// Null when built without libcuckoo or for a width that was not compiled.
Map* ref_cuckoo_new([[maybe_unused]] size_t width) {
#ifdef HAVE_LIBCUCKOO
  switch (width) {
    case 8:
      return new CuckooMap<8>();
    case 16:
      return new CuckooMap<16>();
    case 32:
      return new CuckooMap<32>();
    case 64:
      return new CuckooMap<64>();
    case 128:
      return new CuckooMap<128>();
    case 256:
      return new CuckooMap<256>();
  }
#endif
  return nullptr;
}

int ref_have_cuckoo() {
#ifdef HAVE_LIBCUCKOO
  return 1;
#else
  return 0;
#endif
}

void ref_map_free(Map* map) { delete map; }

void ref_map_assign(Map* map, const uint64_t* ids, size_t n, const float* rows, size_t dim) {
  map->assign(ids, n, rows, dim);
}

void ref_map_find(Map* map, const uint64_t* ids, size_t n, float* out, size_t dim) { map->find(ids, n, out, dim); }

void ref_map_erase(Map* map, const uint64_t* ids, size_t n) { map->erase(ids, n); }

void ref_map_adagrad(Map* map, const uint64_t* ids, size_t n, const float* grads, size_t dim, float lr, float eps) {
  map->adagrad(ids, n, grads, dim, lr, eps);
}
}
