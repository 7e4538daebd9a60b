#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "native/admission.h"
#include "native/hash.h"
#include "native/sketch.h"

using namespace embedstore;
using embedstore::test::Random;

namespace {

// The sketches of a table with 256 chunks, and the exact counts beside them.
class Counted {
 public:
  explicit Counted(uint32_t min_count, uint64_t memory_bytes = 0, unsigned chunk_bits = 8) : bits_(chunk_bits) {
    admission_.kind = Admission::Kind::kMinCount;
    admission_.min_count = min_count;
    admission_.memory_bytes = memory_bytes;
    const uint32_t chunks = 1u << chunk_bits;
    sketches_.assign(chunks, Sketch(admission_.sketch_bytes_max(chunks)));
  }

  // What a push does with an id that may have no row yet.
  void meet(uint64_t id, uint32_t occurrences) {
    ++version_;
    const uint64_t hash = mix64(id);
    Sketch& sketch = sketches_[chunk_of(hash, bits_)];
    Known& known = known_.try_emplace(id, Known{0, sketch.halvings(), false}).first->second;
    if (known.admitted) return;
    const uint64_t counted = sketch.count(hash);
    if (counted == 0) known = {0, sketch.halvings(), false};
    known.count += occurrences;
    if (counted + occurrences >= admission_.needed(id)) {
      early_ += known.count < admission_.needed(id);
      sketch.remove(hash, version_);
      known.admitted = true;
      ++admitted_;
      return;
    }
    late_ += known.count >= admission_.needed(id) && known.halvings == sketch.halvings();
    sketch.reserve(1);
    CHECK(sketch.add(hash, occurrences, version_) == counted + occurrences);
  }

  size_t ids() const { return known_.size(); }
  size_t early() const { return early_; }
  size_t late() const { return late_; }
  size_t admitted() const { return admitted_; }
  uint64_t halvings() const {
    uint64_t sum = 0;
    for (const Sketch& sketch : sketches_) sum += sketch.halvings();
    return sum;
  }
  size_t memory_bytes() const {
    size_t sum = 0;
    for (const Sketch& sketch : sketches_) sum += sketch.memory_bytes();
    return sum;
  }

 private:
  struct Known {
    uint64_t count;  // since it was first counted, exact
    uint64_t halvings;
    bool admitted;
  };

  const unsigned bits_;
  Admission admission_;
  std::vector<Sketch> sketches_;
  std::unordered_map<uint64_t, Known> known_;
  uint64_t version_ = 0;
  size_t early_ = 0;
  size_t late_ = 0;
  size_t admitted_ = 0;
};

constexpr size_t kIds = 120'000;

// Every id comes until it lacks one occurrence, in few steps: none may be admitted.
void meet_almost(Counted& table, uint64_t id, uint32_t min_count, unsigned step) {
  const uint32_t below = min_count - 1;
  const uint32_t steps = std::min<uint32_t>(below, 3);
  const uint32_t part = below / steps;
  if (step < steps) table.meet(id, step + 1 < steps ? part : below - part * (steps - 1));
}

std::vector<uint64_t> zipf_ids(size_t universe, double exponent, size_t draws, Random& random) {
  std::vector<double> cumulative(universe);
  double sum = 0;
  for (size_t rank = 0; rank < universe; ++rank)
    cumulative[rank] = sum += std::pow(static_cast<double>(rank + 1), -exponent);
  std::vector<uint64_t> ids(draws);
  for (uint64_t& id : ids) {
    const double u = static_cast<double>(random.next() >> 11) * 0x1p-53 * sum;
    id = static_cast<uint64_t>(std::lower_bound(cumulative.begin(), cumulative.end(), u) - cumulative.begin());
  }
  return ids;
}

std::vector<std::pair<uint32_t, uint32_t>> slots_of(const Sketch& sketch) {
  std::vector<std::pair<uint32_t, uint32_t>> slots;
  for (uint32_t b = 0; b < sketch.num_blocks(); ++b)
    for (uint32_t s = 0; s < Sketch::kBlockSlots; ++s)
      slots.emplace_back(sketch.block(b)[s].fingerprint, sketch.block(b)[s].count);
  return slots;
}

// A copy as a delta makes one.
bool copy_blocks(const Sketch& from, const std::vector<uint32_t>& blocks, bool keep, Sketch& to) {
  to.begin(from.num_slots(), keep);
  for (const uint32_t b : blocks) std::copy_n(from.block(b), Sketch::kBlockSlots, to.open_block(b, from.version()));
  return to.finish(from.halvings(), from.version());
}

}  // namespace

TEST(sketch_admits_at_most_one_id_in_a_hundred_early_among_sequential_and_random_ids) {
  for (const uint32_t min_count : {2u, 5u, 1000u}) {
    for (const bool sequential : {true, false}) {
      Counted table(min_count);
      Random random{min_count};
      std::vector<uint64_t> ids(kIds);
      for (size_t i = 0; i < kIds; ++i) ids[i] = sequential ? i : random.next();
      for (unsigned step = 0; step < 3; ++step)
        for (const uint64_t id : ids) meet_almost(table, id, min_count, step);
      CHECK(table.halvings() == 0);
      CHECK(table.early() == table.admitted());
      CHECK(table.early() * 100 <= kIds);
      for (const uint64_t id : ids) table.meet(id, 1);
      CHECK(table.admitted() == kIds);
      CHECK(table.late() == 0);
    }
  }
}

TEST(sketch_admits_at_most_one_id_in_a_hundred_early_in_zipf_streams) {
  for (const uint32_t min_count : {2u, 5u, 1000u}) {
    Random random{7 + min_count};
    Counted table(min_count);
    for (const uint64_t id : zipf_ids(300'000, 1.05, 600'000, random)) table.meet(id, 1);
    CHECK(table.ids() > kIds / 2);
    CHECK(table.early() * 100 <= table.ids());
    CHECK(table.late() == 0);
    CHECK(table.admitted() > 20);
    CHECK(table.memory_bytes() <= Admission::kMemoryBytesDefault * 17 / 8);
  }
}

TEST(sketch_is_never_late_between_halvings_however_occurrences_come) {
  for (const uint64_t memory_bytes : {uint64_t{0}, uint64_t{4} << 10, uint64_t{16} << 10}) {
    Random random{memory_bytes + 1};
    Counted table(40, memory_bytes, 2);
    for (const uint64_t id : zipf_ids(5'000, 0.8, 100'000, random)) {
      table.meet(id, 1 + static_cast<uint32_t>(random.below(5) == 0 ? random.below(30) : 0));
    }
    CHECK((table.halvings() == 0) == (memory_bytes == 0));
    CHECK(table.late() == 0);
    CHECK(table.admitted() > 100);
  }
}

TEST(sketch_knows_thresholds_beyond_sixteen_bits_and_saturates) {
  Sketch sketch(Sketch::kBytesMin);
  sketch.reserve(2);
  for (uint32_t i = 1; i <= 1000; ++i) CHECK(sketch.add(1, 100, i) == i * 100);
  CHECK(sketch.count(1) == 100'000);
  CHECK(sketch.add(2, 0xFFFFFFF0, 1001) == 0xFFFFFFF0);
  CHECK(sketch.add(2, 0xFFFFFFF0, 1002) == 0xFFFFFFFF);
  CHECK(sketch.add(2, 1, 1003) == 0xFFFFFFFF);
}

TEST(sketch_stays_within_its_bytes_and_halves_counts) {
  Sketch sketch(size_t{8} << 10);
  CHECK(sketch.slots_max() == 1024);
  Random random{3};
  std::map<uint32_t, uint64_t> exact;
  for (uint64_t version = 1; version < 20'000; ++version) {
    const uint64_t hash = random.next();
    const uint64_t halvings = sketch.halvings();
    const uint64_t earlier = sketch.count(hash);
    const auto occurrences = 1 + static_cast<uint32_t>(random.below(8));
    sketch.reserve(1);
    sketch.add(hash, occurrences, version);
    for (uint64_t h = halvings; h < sketch.halvings(); ++h) {
      for (auto entry = exact.begin(); entry != exact.end();) {
        entry->second /= 2;
        entry = entry->second == 0 ? exact.erase(entry) : std::next(entry);
      }
    }
    if (halvings != sketch.halvings()) CHECK(sketch.size() * 2 <= sketch.num_slots() + 2);
    exact[static_cast<uint32_t>(hash)] = earlier + occurrences;
    CHECK(sketch.size() == exact.size() && sketch.size() * 4 <= sketch.num_slots() * 3);
    CHECK(sketch.memory_bytes() <= 2 * (size_t{8} << 10) + 1024 / 64 * 8);
    if (version % 500 == 0)
      for (const auto& [fingerprint, count] : exact) CHECK(sketch.count(fingerprint) == count);
  }
  CHECK(sketch.halvings() > 20);
}

TEST(sketch_is_a_function_of_what_was_counted) {
  Sketch one(size_t{32} << 10);
  Sketch other(size_t{32} << 10);
  Random random{11};
  std::vector<uint64_t> hashes;
  for (uint64_t version = 1; version < 300; ++version) {
    const size_t batch = 1 + random.below(60);
    other.reserve(batch * (1 + random.below(40)));
    for (size_t i = 0; i < batch; ++i) {
      const bool again = !hashes.empty() && random.below(3) == 0;
      const uint64_t hash = again ? hashes[random.below(hashes.size())] : random.next();
      hashes.push_back(hash);
      if (again && random.below(2) == 0) {
        one.remove(hash, version);
        other.remove(hash, version);
        continue;
      }
      one.reserve(1);
      CHECK(one.add(hash, 3, version) == other.add(hash, 3, version));
    }
    CHECK(slots_of(one) == slots_of(other) && one.version() == other.version());
    CHECK(one.size() == other.size() && one.halvings() == other.halvings());
  }
  CHECK(one.halvings() > 0);
}

TEST(sketch_copies_from_changed_blocks_alone) {
  Sketch sketch(size_t{16} << 10);
  Sketch copy(size_t{16} << 10);
  Random random{5};
  std::vector<uint64_t> hashes;
  uint64_t copied_at = 0;
  size_t partial = 0;
  for (uint64_t version = 1; version < 8'000; ++version) {
    const uint64_t hash = random.below(3) == 0 && !hashes.empty() ? hashes[random.below(hashes.size())] : random.next();
    hashes.push_back(hash);
    sketch.reserve(1);
    if (random.below(4) == 0) {
      sketch.remove(hash, version);
    } else {
      sketch.add(hash, 1 + static_cast<uint32_t>(random.below(3)), version);
    }
    if (random.below(5) != 0 || sketch.num_slots() == 0) continue;
    std::vector<uint32_t> blocks;
    sketch.changed_since(copied_at, blocks);
    partial += blocks.size() < sketch.num_blocks();
    CHECK(copy_blocks(sketch, blocks, true, copy));
    copied_at = version;
    CHECK(slots_of(copy) == slots_of(sketch));
    CHECK(copy.size() == sketch.size() && copy.version() == sketch.version() && copy.halvings() == sketch.halvings());
  }
  CHECK(partial > 100 && sketch.halvings() > 0);
  std::vector<uint32_t> all;
  sketch.changed_since(0, all);
  Sketch fresh(size_t{16} << 10);
  CHECK(copy_blocks(sketch, all, false, fresh) && slots_of(fresh) == slots_of(sketch));
}

TEST(sketch_refuses_contents_in_which_something_cannot_be_found) {
  const auto loads = [](std::vector<std::pair<uint32_t, Sketch::Slot>> entries) {
    Sketch sketch(size_t{4} << 10);
    sketch.begin(128, false);
    for (const auto& [slot, entry] : entries) sketch.open_block(slot / 64, 1)[slot % 64] = entry;
    return sketch.finish(0, 1);
  };
  CHECK(loads({}));
  CHECK(loads({{5, {5, 1}}, {6, {5 + 128, 2}}, {7, {6, 1}}}));
  CHECK(loads({{127, {127, 1}}, {0, {255, 2}}}));
  CHECK(!loads({{6, {5, 1}}}));
  CHECK(!loads({{5, {5, 1}}, {6, {6, 1}}, {7, {5, 2}}}));
  CHECK(!loads({{0, {255, 2}}}));
  std::vector<std::pair<uint32_t, Sketch::Slot>> many;
  for (uint32_t slot = 0; slot < 96; ++slot) many.push_back({slot, {slot, 1}});
  CHECK(loads(many));
  many.push_back({96, {96, 1}});
  CHECK(!loads(many));
}

TEST(sketch_refuses_long_runs_with_something_twice_in_bounded_time) {
  Sketch sketch(size_t{8} << 20);
  const uint32_t slots = 1 << 20;
  const uint32_t run = slots / 4 * 3;
  for (const bool twice : {true, false}) {
    sketch.begin(slots, false);
    for (uint32_t i = 0; i < run; ++i) {
      const uint32_t fingerprint = (i % 4096) << 20;  // at home in slot 0, and soon again
      sketch.open_block(i / 64, 1)[i % 64] = {twice ? fingerprint : i, 1};
    }
    CHECK(sketch.finish(0, 1) != twice);
  }
}

TEST(sketch_is_unchanged_when_memory_runs_out) {
  Random random{9};
  Sketch sketch(size_t{1} << 20);
  for (uint64_t version = 1; version < 200; ++version) {
    const auto before = slots_of(sketch);
    const size_t more = 1 + random.below(300);
    for (long allowed = 0;; ++allowed) {
      embedstore::test::fail_allocations_after(allowed);
      bool thrown = false;
      try {
        sketch.reserve(more);
      } catch (const std::bad_alloc&) {
        thrown = true;
      }
      embedstore::test::fail_allocations_after(-1);
      CHECK(slots_of(sketch) == before);
      if (!thrown) break;
    }
    embedstore::test::fail_allocations_after(0);
    for (size_t i = 0; i < more; ++i) sketch.add(random.next(), 1, version);
    embedstore::test::fail_allocations_after(-1);
  }
}

TEST(admission_by_count_needs_that_many) {
  Admission admission;
  CHECK(admission.needed(5) == 0 && admission.sketch_bytes_max(256) == 0);
  admission.kind = Admission::Kind::kMinCount;
  admission.min_count = 70'000;
  CHECK(admission.needed(5) == 70'000);
  CHECK(admission.sketch_bytes_max(256) == size_t{64} << 10);
  admission.memory_bytes = 1;
  CHECK(admission.sketch_bytes_max(256) == Sketch::kBytesMin);
}

TEST(admission_by_probability_draws_from_the_geometric_distribution) {
  for (const double p : {1.0, 0.5, 0.1, 0.003}) {
    Admission admission;
    admission.kind = Admission::Kind::kProbability;
    admission.p = p;
    admission.seed = 17;
    constexpr size_t kDraws = 200'000;
    double sum = 0;
    size_t at_once = 0;
    for (uint64_t id = 0; id < kDraws; ++id) {
      const uint64_t needed = admission.needed(id);
      CHECK(needed >= 1 && needed <= 0xFFFFFFFF);
      sum += static_cast<double>(needed);
      at_once += needed == 1;
    }
    const double deviation = std::sqrt(1 - p) / p / std::sqrt(static_cast<double>(kDraws));
    CHECK(std::abs(sum / kDraws - 1 / p) <= 5 * deviation);
    CHECK(std::abs(static_cast<double>(at_once) / kDraws - p) <= 5 * std::sqrt(p * (1 - p) / kDraws));
  }
}

TEST(admission_by_probability_is_the_same_number_everywhere) {
  Admission admission;
  admission.kind = Admission::Kind::kProbability;
  admission.p = 0.01;
  admission.seed = 42;
  const uint64_t expected[] = {83, 162, 119, 57, 110, 113, 74, 62};
  uint64_t id = 1;
  for (const uint64_t needed : expected) {
    CHECK(admission.needed(id) == needed);
    id = id * 6364136223846793005u + 1442695040888963407u;
  }
  admission.p = 1e-300;
  CHECK(admission.needed(3) == 0xFFFFFFFF);
  admission.p = 1e-9;
  uint64_t largest = 0;
  for (uint64_t i = 0; i < 200; ++i) largest = std::max(largest, admission.needed(i));
  CHECK(largest == 0xFFFFFFFF);
}
