#include "native/tombstones.h"

#include <algorithm>

namespace embedstore {

void Tombstones::reset(uint64_t horizon) noexcept {
  current_ = FlatMap();
  log_.clear();
  horizon_ = horizon;
}

void Tombstones::reserve(size_t more) {
  current_.reserve(more);
  if (log_.size() + more > log_.capacity()) log_.reserve(log_.size() + std::max(more, log_.size() / 2));
}

void Tombstones::add(const Tombstone& tombstone) noexcept {
  if (current_.get(tombstone.id) >> 8 == tombstone.version) return;
  current_.set(tombstone.id, tombstone.version << 8 | static_cast<uint64_t>(tombstone.reason));
  log_.push_back({tombstone.id, tombstone.version});
}

void Tombstones::settle(size_t tombstones_max) noexcept {
  const auto older = [](const Entry& a, const Entry& b) { return a.version < b.version; };
  if (!std::is_sorted(log_.begin(), log_.end(), older)) std::sort(log_.begin(), log_.end(), older);
  size_t dropped = 0;
  // An eighth at once, so that a steady flow of removals does not shift the log with every batch.
  const size_t keep = current_.size() > tombstones_max ? tombstones_max - tombstones_max / 8 : tombstones_max;
  for (; current_.size() > keep; ++dropped) {
    if (stale(log_[dropped])) continue;
    horizon_ = std::max(horizon_, log_[dropped].version);
    current_.erase(log_[dropped].id);
  }
  log_.erase(log_.begin(), log_.begin() + static_cast<ptrdiff_t>(dropped));
  if (log_.size() > 2 * current_.size() + 64) std::erase_if(log_, [this](const Entry& entry) { return stale(entry); });
  current_.shrink();
  if (log_.capacity() > 4 * log_.size() + 64) log_.shrink_to_fit();
}

void Tombstones::since(uint64_t version, std::vector<Tombstone>& out) const {
  auto entry =
      std::upper_bound(log_.begin(), log_.end(), version, [](uint64_t v, const Entry& e) { return v < e.version; });
  for (; entry != log_.end(); ++entry) {
    if (stale(*entry)) continue;
    out.push_back({entry->id, entry->version, static_cast<Reason>(current_.get(entry->id) & 0xFF)});
  }
}

}  // namespace embedstore
