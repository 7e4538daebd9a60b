// How the core reports failure: values, never exceptions. The one exception inside the core is std::bad_alloc, which
// the table's entry points turn into kNoMemory. Safe to copy and read from any thread.
#pragma once

#include <string>
#include <utility>

namespace embedstore {

enum class Code {
  kOk,
  kInvalidArgument,  // the caller's fault; `field` names it
  kWrongShard,       // ids or a chunk that this table does not own
  kGap,              // origins neither continue nor repeat the watermarks
  kUnknownStream,    // `field` is the stream
  kCorruptDelta,
  kDeltaGap,
  kNoMemory,
  kBusy,  // somebody else holds a lock that was only to be tried
};

struct [[nodiscard]] Status {
  Code code = Code::kOk;
  std::string field;
  std::string problem;

  bool ok() const { return code == Code::kOk; }

  static Status invalid(std::string field, std::string problem) {
    return {Code::kInvalidArgument, std::move(field), std::move(problem)};
  }
  static Status corrupt(std::string problem) { return {Code::kCorruptDelta, "delta", std::move(problem)}; }
  static Status no_memory() { return {Code::kNoMemory, "", "out of memory"}; }
};

}  // namespace embedstore
