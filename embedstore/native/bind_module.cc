#include <algorithm>

#include "native/bind.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace embedstore::bind {
namespace {

template <class... Args>
[[noreturn]] void raise(const char* error, const Args&... args) {
  const nb::object type = nb::module_::import_("embedstore.errors").attr(error);
  const nb::object value = type(args...);
  PyErr_SetObject(type.ptr(), value.ptr());
  throw nb::python_error();
}

// Every distinct watermark of the streams of a refused push.
[[noreturn]] void raise_gap(const Table& table, const std::vector<Origin>& origins) {
  Table::DistinctWatermarks distinct;
  if (!table.watermarks(distinct).ok()) throw std::bad_alloc();
  nb::dict result;
  for (const Origin& origin : origins) {
    std::vector<int64_t> positions;
    for (const auto& [marks, chunks] : distinct) {
      const int64_t position = marks->position(origin.stream);
      if (position >= 0 && std::find(positions.begin(), positions.end(), position) == positions.end())
        positions.push_back(position);
    }
    result[nb::str(origin.stream.c_str(), origin.stream.size())] = positions;
  }
  raise("GapError", result);
}

void tune_allocator() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

}  // namespace

std::vector<Origin> to_origins(const OriginTuples& tuples) {
  std::vector<Origin> origins;
  for (const auto& [stream, begin, end] : tuples) origins.push_back({stream, begin, end});
  return origins;
}

void raise_invalid(const std::string& field, const std::string& problem) {
  raise("InvalidArgumentError", field, problem);
}

void check(const Status& status, const NamedTable& table, const std::vector<Origin>& origins) {
  switch (status.code) {
    case Code::kOk:
      return;
    case Code::kInvalidArgument:
      raise_invalid(table.name + "." + status.field, status.problem);
    case Code::kWrongShard:
      raise("WrongShardError", table.name + ": " + status.problem);
    case Code::kGap:
      raise_gap(table.table, origins);
    case Code::kUnknownStream:
      raise("UnknownStreamError", status.field);
    case Code::kCorruptDelta:
      raise("CorruptDeltaError", table.name + ": delta " + status.problem);
    case Code::kDeltaGap:
      raise("DeltaGapError", table.name + ": delta " + status.problem);
    case Code::kBusy:
      raise("EmbedstoreError", table.name + ": " + status.problem);
    case Code::kNoMemory:
      throw std::bad_alloc();
  }
}

}  // namespace embedstore::bind

NB_MODULE(_native, module) {
  using namespace embedstore::bind;
  module.doc() = "The native core: one table's chunks, and batch operations on ids. Use embedstore.table instead.";
  module.def("tune_allocator", &tune_allocator,
             "Keep freed memory of large buffers in this process instead of returning and re-faulting it (glibc only; "
             "elsewhere this does nothing). Call once, early; any thread.");
  bind_batch(module);
  auto table = bind_table(module);
  bind_sync(table);
}
