// Which positions of which streams a chunk has absorbed, and the rule by which a push meets them.
//
// A WatermarkSet is immutable and shared: in steady state all chunks of a table point to the same one, so a push makes
// one new set and moves pointers. Callable from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace embedstore {

struct Origin {
  std::string stream;
  int64_t begin;
  int64_t end;
};

// Ascending by stream, no stream twice.
using WatermarkList = std::vector<std::pair<std::string, int64_t>>;

class WatermarkSet {
 public:
  explicit WatermarkSet(WatermarkList list) : list_(std::move(list)) {}

  const WatermarkList& list() const noexcept { return list_; }
  // -1 when the stream is unknown.
  int64_t position(const std::string& stream) const noexcept;
  bool operator==(const WatermarkSet& other) const noexcept { return list_ == other.list_; }

 private:
  WatermarkList list_;
};

using Watermarks = std::shared_ptr<const WatermarkSet>;  // never null

Watermarks no_watermarks();
// `base` with each stream of `list` (ascending) raised to its position; `only_new` leaves known streams as they are.
// Returns `base` itself when nothing changes. Throws std::bad_alloc.
Watermarks raised(const Watermarks& base, const WatermarkList& list, bool only_new = false);
Watermarks without(const Watermarks& base, const std::string& stream);

// What the origins of one push mean to each distinct set of watermarks. Used by one push, under no lock of its own.
class OriginPlan {
 public:
  enum class Decision { kApply, kSkip, kGap, kUnknownStream };
  struct Entry {
    Watermarks before;
    Watermarks after;  // for kApply
    Decision decision;
  };

  explicit OriginPlan(const std::vector<Origin>& origins);

  // Without origins every chunk applies and its watermarks stay. Throws std::bad_alloc.
  const Entry& meet(const Watermarks& watermarks);
  // The stream that a chunk did not know, after kUnknownStream.
  const std::string& unknown_stream() const noexcept { return unknown_stream_; }

 private:
  Entry decide(const Watermarks& watermarks);

  const std::vector<Origin>& origins_;
  WatermarkList ends_;
  std::vector<Entry> entries_;
  std::string unknown_stream_;
};

}  // namespace embedstore
