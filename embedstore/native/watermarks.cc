#include "native/watermarks.h"

#include <algorithm>

namespace embedstore {

int64_t WatermarkSet::position(const std::string& stream) const noexcept {
  const auto it = std::lower_bound(list_.begin(), list_.end(), stream,
                                   [](const auto& entry, const std::string& s) { return entry.first < s; });
  return it != list_.end() && it->first == stream ? it->second : -1;
}

Watermarks no_watermarks() {
  static const Watermarks empty = std::make_shared<const WatermarkSet>(WatermarkList{});
  return empty;
}

Watermarks raised(const Watermarks& base, const WatermarkList& list, bool only_new) {
  WatermarkList merged;
  merged.reserve(base->list().size() + list.size());
  bool changed = false;
  auto old = base->list().begin();
  const auto old_end = base->list().end();
  for (const auto& [stream, position] : list) {
    while (old != old_end && old->first < stream) merged.push_back(*old++);
    if (old == old_end || old->first != stream) {
      merged.emplace_back(stream, position);
      changed = true;
      continue;
    }
    const bool raise = !only_new && position > old->second;
    merged.emplace_back(stream, raise ? position : old->second);
    changed |= raise;
    ++old;
  }
  if (!changed) return base;
  merged.insert(merged.end(), old, old_end);
  return std::make_shared<const WatermarkSet>(std::move(merged));
}

Watermarks without(const Watermarks& base, const std::string& stream) {
  if (base->position(stream) < 0) return base;
  WatermarkList rest = base->list();
  std::erase_if(rest, [&](const auto& entry) { return entry.first == stream; });
  return std::make_shared<const WatermarkSet>(std::move(rest));
}

OriginPlan::OriginPlan(const std::vector<Origin>& origins) : origins_(origins) {
  for (const Origin& origin : origins) ends_.emplace_back(origin.stream, origin.end);
  std::sort(ends_.begin(), ends_.end());
}

const OriginPlan::Entry& OriginPlan::meet(const Watermarks& watermarks) {
  for (const Entry& entry : entries_)
    if (entry.before == watermarks) return entry;
  Entry entry = decide(watermarks);
  // Chunks whose sets became equal share one again.
  for (const Entry& other : entries_)
    if (entry.decision == Decision::kApply && other.decision == Decision::kApply && *other.after == *entry.after)
      entry.after = other.after;
  entries_.push_back(std::move(entry));
  return entries_.back();
}

OriginPlan::Entry OriginPlan::decide(const Watermarks& watermarks) {
  if (origins_.empty()) return {watermarks, watermarks, Decision::kApply};
  bool all_done = true;
  bool all_next = true;
  for (const Origin& origin : origins_) {
    const int64_t position = watermarks->position(origin.stream);
    if (position < 0) {
      unknown_stream_ = origin.stream;
      return {watermarks, watermarks, Decision::kUnknownStream};
    }
    all_done &= origin.end <= position;
    all_next &= origin.begin == position;
  }
  if (all_done) return {watermarks, watermarks, Decision::kSkip};
  if (!all_next) return {watermarks, watermarks, Decision::kGap};
  return {watermarks, raised(watermarks, ends_), Decision::kApply};
}

}  // namespace embedstore
