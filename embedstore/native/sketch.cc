#include "native/sketch.h"

#include <algorithm>
#include <limits>

namespace embedstore {
namespace {

constexpr size_t kSlotsMax = size_t{1} << 31;

}  // namespace

Sketch::Sketch(size_t bytes_max) noexcept {
  if (bytes_max == 0) return;
  size_t slots = kBlockSlots;
  while (slots < kSlotsMax && slots * 2 * sizeof(Slot) <= bytes_max) slots *= 2;
  slots_max_ = static_cast<uint32_t>(slots);
}

size_t Sketch::memory_bytes() const noexcept {
  return (slots_.capacity() + spare_.capacity()) * sizeof(Slot) + block_versions_.capacity() * sizeof(uint64_t);
}

uint32_t Sketch::find(uint32_t fingerprint) const noexcept {
  uint32_t slot = home(fingerprint);
  while (slots_[slot].count != 0 && slots_[slot].fingerprint != fingerprint) slot = next(slot);
  return slot;
}

uint32_t Sketch::count(uint64_t hash) const noexcept {
  if (size_ == 0) return 0;
  return slots_[find(static_cast<uint32_t>(hash))].count;
}

// Both arrays get the room of the last doubling that could come, so that they can take turns until then.
void Sketch::reserve(size_t more) {
  size_t wanted = std::max<size_t>(slots_.size(), std::min(kBlockSlots, slots_max_));
  while (wanted < slots_max_ && (size_ + more) * 4 > wanted * 3) wanted *= 2;
  if (more == 0 || wanted <= slots_.size()) {
    std::vector<Slot>().swap(spare_);
    return;
  }
  spare_.clear();
  spare_.reserve(wanted);
  slots_.reserve(wanted);
  block_versions_.reserve(wanted / kBlockSlots);
}

void Sketch::grow(uint64_t version) noexcept {
  spare_.assign(slots_.empty() ? kBlockSlots : slots_.size() * 2, Slot{});
  slots_.swap(spare_);
  for (const Slot& entry : spare_)
    if (entry.count != 0) slots_[find(entry.fingerprint)] = entry;
  block_versions_.assign(num_blocks(), version);
  version_ = version;
}

// Begins behind an empty slot: what an erasure moves then always comes from where the walk has not been yet.
void Sketch::halve(uint64_t version) noexcept {
  uint32_t start = 0;
  while (slots_[start].count != 0) start = next(start);
  for (uint32_t slot = next(start); slot != start;) {
    Slot& entry = slots_[slot];
    if (entry.count == 1) {
      erase_slot(slot, [](uint32_t) {});
      continue;
    }
    entry.count /= 2;
    slot = next(slot);
  }
  std::fill(block_versions_.begin(), block_versions_.end(), version);
  version_ = version;
  ++halvings_;
}

uint32_t Sketch::add(uint64_t hash, uint32_t occurrences, uint64_t version) noexcept {
  const auto fingerprint = static_cast<uint32_t>(hash);
  uint32_t slot = 0;
  if (!slots_.empty()) {
    slot = find(fingerprint);
    if (Slot& entry = slots_[slot]; entry.count != 0) {
      const uint64_t sum = uint64_t{entry.count} + occurrences;
      entry.count = static_cast<uint32_t>(std::min<uint64_t>(sum, std::numeric_limits<uint32_t>::max()));
      touch(slot, version);
      return entry.count;
    }
  }
  if (full_with(size_t{size_} + 1)) {
    if (num_slots() < slots_max_) {
      grow(version);
    } else {
      do {
        halve(version);
      } while (size_t{size_} * 2 > slots_.size());
    }
    slot = find(fingerprint);
  }
  slots_[slot] = {fingerprint, occurrences};
  ++size_;
  touch(slot, version);
  return occurrences;
}

template <class Touched>
void Sketch::erase_slot(uint32_t slot, Touched touched) noexcept {
  touched(slot);
  for (uint32_t from = next(slot); slots_[from].count != 0; from = next(from)) {
    const uint32_t distance = (from - home(slots_[from].fingerprint)) & mask();
    if (distance < ((from - slot) & mask())) continue;
    slots_[slot] = slots_[from];
    slot = from;
    touched(slot);
  }
  slots_[slot] = {};
  --size_;
}

void Sketch::remove(uint64_t hash, uint64_t version) noexcept {
  if (size_ == 0) return;
  const uint32_t slot = find(static_cast<uint32_t>(hash));
  if (slots_[slot].count == 0) return;
  erase_slot(slot, [&](uint32_t changed) { touch(changed, version); });
}

void Sketch::changed_since(uint64_t version, std::vector<uint32_t>& out) const {
  const auto used = [](const Slot& slot) { return slot.count != 0; };
  for (uint32_t b = 0; b < num_blocks(); ++b) {
    if (version != 0 ? block_versions_[b] > version : std::any_of(block(b), block(b) + kBlockSlots, used))
      out.push_back(b);
  }
}

void Sketch::begin(uint32_t num_slots, bool keep) {
  if (keep && num_slots == slots_.size()) return;
  slots_.assign(num_slots, Slot{});
  block_versions_.assign(num_slots / kBlockSlots, 0);
}

Sketch::Slot* Sketch::open_block(uint32_t block, uint64_t version) noexcept {
  block_versions_[block] = version;
  return slots_.data() + size_t{block} * kBlockSlots;
}

bool Sketch::finish(uint64_t halvings, uint64_t version) {
  size_t entries = 0;
  for (const Slot& slot : slots_) entries += slot.count != 0;
  if (full_with(entries)) return false;
  size_ = static_cast<uint32_t>(entries);
  halvings_ = halvings;
  version_ = version;
  return each_is_found() && !any_twice();
}

// Going round from an empty slot: an entry is found when no slot since the last empty one comes before its home.
bool Sketch::each_is_found() const noexcept {
  if (size_ == 0) return true;
  uint32_t start = 0;
  while (slots_[start].count != 0) start = next(start);
  uint32_t run = 0;
  for (uint32_t slot = next(start); slot != start; slot = next(slot)) {
    if (slots_[slot].count == 0) {
      run = 0;
      continue;
    }
    if (((slot - home(slots_[slot].fingerprint)) & mask()) > run) return false;
    ++run;
  }
  return true;
}

// Equal fingerprints lie in one run. Normal runs are short and are searched; what would take long is sorted.
bool Sketch::any_twice() const {
  size_t steps_left = size_t{size_} * 64;
  for (uint32_t slot = 0; slot < num_slots(); ++slot) {
    if (slots_[slot].count == 0) continue;
    const uint32_t fingerprint = slots_[slot].fingerprint;
    const uint32_t distance = (slot - home(fingerprint)) & mask();
    if (distance > steps_left) {
      std::vector<uint32_t> all;
      all.reserve(size_);
      for (const Slot& entry : slots_)
        if (entry.count != 0) all.push_back(entry.fingerprint);
      std::sort(all.begin(), all.end());
      return std::adjacent_find(all.begin(), all.end()) != all.end();
    }
    steps_left -= distance;
    if (find(fingerprint) != slot) return true;
  }
  return false;
}

}  // namespace embedstore
