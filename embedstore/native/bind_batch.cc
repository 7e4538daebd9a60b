#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <new>

#include "native/bind.h"
#include "native/crc32c.h"

namespace embedstore::bind {
namespace {

constexpr uint32_t kNumChunksMax = 1u << 16;

nb::object mix64_all(const IdArray& ids) {
  std::vector<uint64_t> hashes(ids.shape(0));
  {
    nb::gil_scoped_release release;
    for (size_t i = 0; i < hashes.size(); ++i) hashes[i] = mix64(ids.data()[i]);
  }
  const size_t count = hashes.size();
  return to_numpy(std::move(hashes), {count});
}

nb::tuple unique(const IdArray& ids) {
  const size_t count = ids.shape(0);
  if (count >= Distinct::kEnd) raise_invalid("ids", "too many");
  std::vector<uint64_t> distinct_ids;
  std::vector<int64_t> inverse(count);
  std::vector<uint32_t> counts;
  {
    nb::gil_scoped_release release;
    thread_local Distinct distinct;
    distinct.build(ids.data(), count);
    distinct_ids.assign(distinct.ids(), distinct.ids() + distinct.size());
    counts.assign(distinct.size(), 0);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t u = distinct.distinct_of(static_cast<uint32_t>(i));
      inverse[i] = u;
      ++counts[u];
    }
  }
  const size_t size = distinct_ids.size();
  return nb::make_tuple(to_numpy(std::move(distinct_ids), {size}), to_numpy(std::move(inverse), {count}),
                        to_numpy(std::move(counts), {size}));
}

nb::tuple split(const IdArray& ids, uint32_t num_chunks, uint32_t num_shards) {
  if (num_chunks == 0 || num_chunks > kNumChunksMax || (num_chunks & (num_chunks - 1)) != 0)
    raise_invalid("num_chunks", "must be a power of two up to 65536, not " + std::to_string(num_chunks));
  if (num_shards == 0 || num_shards > num_chunks)
    raise_invalid("num_shards", "must be from 1 to num_chunks, not " + std::to_string(num_shards));
  const size_t count = ids.shape(0);
  std::vector<int64_t> order(count);
  std::vector<int64_t> bounds(size_t{num_shards} + 1);
  {
    nb::gil_scoped_release release;
    split_by_shard(ids.data(), count, num_chunks, num_shards, order.data(), bounds.data());
  }
  return nb::make_tuple(to_numpy(std::move(order), {count}), to_numpy(std::move(bounds), {size_t{num_shards} + 1}));
}

uint32_t crc32c_of(nb::bytes data) {
  nb::gil_scoped_release release;
  return crc32c(data.data(), data.size());
}

// One part of a message: literal bytes, or rows to pull.
struct Segment {
  const uint8_t* literal = nullptr;
  NamedTable* table = nullptr;
  IdArray ids;
  RowType type = RowType::kFloat32;
  size_t num_bytes = 0;
};

Segment to_segment(nb::handle item) {
  Segment segment;
  if (nb::isinstance<nb::bytes>(item)) {
    const auto bytes = nb::borrow<nb::bytes>(item);
    segment.literal = static_cast<const uint8_t*>(bytes.data());
    segment.num_bytes = bytes.size();
    return segment;
  }
  if (!nb::isinstance<nb::tuple>(item) || nb::len(item) != 3)
    raise_invalid("segments", "each must be bytes or a tuple (table, ids, dtype)");
  segment.table = nb::cast<NamedTable*>(nb::getattr(item[0], "native", item[0]));
  segment.ids = nb::cast<IdArray>(item[1]);
  const size_t width = nb::cast<size_t>(nb::module_::import_("numpy").attr("dtype")(item[2]).attr("itemsize"));
  if (width != 2 && width != 4) raise_invalid("segments", "dtype must be float32 or float16");
  segment.type = width == 2 ? RowType::kFloat16 : RowType::kFloat32;
  segment.num_bytes = segment.ids.shape(0) * segment.table->table.config().dim * width;
  return segment;
}

nb::bytes gather_message(const nb::list& items) {
  std::vector<Segment> segments;
  size_t total = 0;
  for (const nb::handle item : items) {
    segments.push_back(to_segment(item));
    total += segments.back().num_bytes;
  }
  auto message = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(total)));
  if (!message.is_valid()) throw nb::python_error();
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(message.ptr()));
  Status status;
  const NamedTable* failed = nullptr;
  {
    nb::gil_scoped_release release;
    for (const Segment& segment : segments) {
      if (segment.literal != nullptr) {
        std::memcpy(out, segment.literal, segment.num_bytes);
      } else if (segment.table != nullptr) {
        PullTarget target;
        target.rows = out;
        target.type = segment.type;
        status = segment.table->table.pull(segment.ids.data(), segment.ids.shape(0), target);
        failed = segment.table;
        if (!status.ok()) break;
      }
      out += segment.num_bytes;
    }
  }
  if (!status.ok()) check(status, *failed);
  return message;
}

}  // namespace

void bind_batch(nb::module_& module) {
  module.def("mix64", &mix64_all, nb::arg("ids"),
             "The 64-bit hash of every id: uint64 [n] -> uint64 [n]. The finalizer of splitmix64; part of the formats.",
             nb::sig("def mix64(ids: object) -> numpy.typing.NDArray[numpy.uint64]"));
  module.def("unique", &unique, nb::arg("ids"),
             "Distinct ids in order of first occurrence: uint64 [n] -> (uint64 [k], int64 [n] index of each id among "
             "them, uint32 [k] how often each occurs).",
             nb::sig("def unique(ids: object) -> tuple[numpy.typing.NDArray[numpy.uint64], "
                     "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint32]]"));
  module.def("split", &split, nb::arg("ids"), nb::arg("num_chunks"), nb::arg("num_shards"),
             "Group ids by owning shard: (int64 [n] positions, stable within a shard; int64 [num_shards + 1] where "
             "each shard's begin). Shard i owns chunks [i*C//n, (i+1)*C//n).",
             nb::sig("def split(ids: object, num_chunks: int, num_shards: int) -> "
                     "tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64]]"));
  module.def("crc32c", &crc32c_of, nb::arg("data"), "CRC-32C (Castagnoli) of the bytes.");
  module.def("gather_message", &gather_message, nb::arg("segments"),
             "One bytes object from literal bytes and rows: each segment is bytes, or (table, uint64 [n] ids, dtype) "
             "for the rows of these ids, float32 or float16, pulled straight into place without the GIL.",
             nb::sig("def gather_message(segments: list[bytes | tuple[object, object, object]]) -> bytes"));
}

}  // namespace embedstore::bind
