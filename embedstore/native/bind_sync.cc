#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <new>

#include "native/bind.h"

namespace embedstore::bind {
namespace {

using Positions = std::map<std::string, int64_t>;

WatermarkList to_list(const Positions& positions) { return {positions.begin(), positions.end()}; }

nb::list watermarks(const NamedTable& self) {
  Table::DistinctWatermarks distinct;
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.watermarks(distinct);
  }
  check(status, self);
  nb::list result;
  for (const auto& [marks, chunks] : distinct) {
    nb::dict positions;
    for (const auto& [stream, position] : marks->list()) positions[nb::str(stream.c_str(), stream.size())] = position;
    result.append(nb::make_tuple(positions, nb::cast(chunks)));
  }
  return result;
}

void raise_streams(NamedTable& self, const Positions& positions, bool only_new) {
  const WatermarkList list = to_list(positions);
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.raise_all(list, only_new);
  }
  check(status, self);
}

void forget_stream(NamedTable& self, const std::string& stream) {
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.forget_stream(stream);
  }
  check(status, self);
}

void raise_chunk(NamedTable& self, uint32_t chunk, const Positions& positions, int64_t clock_ms) {
  const WatermarkList list = to_list(positions);
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.raise_one(chunk, list, clock_ms);
  }
  check(status, self);
}

nb::tuple chunk_states(const NamedTable& self) {
  std::vector<ChunkState> states;
  {
    nb::gil_scoped_release release;
    self.table.states(states);
  }
  std::vector<uint64_t> incarnations;
  std::vector<uint64_t> versions;
  std::vector<int64_t> clocks;
  for (const ChunkState& state : states) {
    incarnations.push_back(state.incarnation);
    versions.push_back(state.version);
    clocks.push_back(state.clock_ms);
  }
  const size_t count = states.size();
  return nb::make_tuple(to_numpy(std::move(incarnations), {count}), to_numpy(std::move(versions), {count}),
                        to_numpy(std::move(clocks), {count}));
}

void branch(NamedTable& self, const IdArray& incarnations) {
  if (incarnations.shape(0) != self.table.num_owned()) raise_invalid("incarnations", "needs one a chunk");
  const std::vector<uint64_t> numbers(incarnations.data(), incarnations.data() + incarnations.shape(0));
  for (const uint64_t number : numbers)
    if (number == 0) raise_invalid("incarnations", "must not be zero");
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.branch(numbers);
  }
  check(status, self);
}

nb::bytes delta(const NamedTable& self, uint32_t chunk, uint64_t incarnation, uint64_t version, bool embeddings_only) {
  nb::object bytes;
  const auto allocate = [&bytes](size_t num_bytes) {
    const nb::gil_scoped_acquire acquire;
    bytes = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(num_bytes)));
    if (!bytes.is_valid()) {
      PyErr_Clear();
      throw std::bad_alloc();
    }
    return reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(bytes.ptr()));
  };
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.delta(chunk, {incarnation, version}, embeddings_only, allocate);
  }
  check(status, self);
  return nb::borrow<nb::bytes>(bytes);
}

nb::tuple apply(NamedTable& self, const nb::object& data) {
  Py_buffer view;
  if (PyObject_GetBuffer(data.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  uint32_t chunk = 0;
  Cursor now;
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.apply(static_cast<const uint8_t*>(view.buf), static_cast<size_t>(view.len), chunk, now);
  }
  PyBuffer_Release(&view);
  check(status, self);
  return nb::make_tuple(chunk, now.incarnation, now.version);
}

}  // namespace

void bind_sync(nb::class_<NamedTable>& table) {
  table.def("watermarks", &watermarks, "Each distinct set of watermarks and the chunks that have it.",
            nb::sig("def watermarks(self) -> list[tuple[dict[str, int], list[int]]]"));
  table.def("raise_streams", &raise_streams, nb::arg("positions"), nb::arg("only_new"),
            "Raise streams in every chunk to these positions; with only_new leave known ones as they are.");
  table.def("forget_stream", &forget_stream, nb::arg("stream"), "Drop a stream's watermark in every chunk.");
  table.def("raise_chunk", &raise_chunk, nb::arg("chunk"), nb::arg("positions"), nb::arg("clock_ms"),
            "Raise one chunk's watermarks and clock.");
  table.def("chunk_states", &chunk_states, "(incarnations uint64, versions uint64, clocks int64) of the owned chunks.",
            nb::sig("def chunk_states(self) -> tuple[numpy.typing.NDArray[numpy.uint64], "
                    "numpy.typing.NDArray[numpy.uint64], numpy.typing.NDArray[numpy.int64]]"));
  table.def("branch", &branch, nb::arg("incarnations"),
            "Begin a new history in every chunk, with the present one as its parent.",
            nb::sig("def branch(self, incarnations: object) -> None"));
  table.def("delta", &delta, nb::arg("chunk"), nb::arg("incarnation"), nb::arg("version"), nb::arg("embeddings_only"),
            "The ChunkDelta since a cursor, or the full chunk when it cannot continue from there.");
  table.def("apply", &apply, nb::arg("delta"),
            "Apply a ChunkDelta: (chunk, incarnation, version) where it stands now. Nobody may write to the buffer "
            "meanwhile.",
            nb::sig("def apply(self, delta: bytes | memoryview) -> tuple[int, int, int]"));
}

}  // namespace embedstore::bind
