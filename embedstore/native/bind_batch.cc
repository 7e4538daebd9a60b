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

// Releasing the GIL costs more than so few ids do, when others wait for it.
constexpr size_t kFewIds = 64;

nb::object unique(const IdArray& ids, size_t repeats_min) {
  const size_t count = ids.shape(0);
  if (count >= Distinct::kEnd) raise_invalid("ids", "too many");
  std::vector<uint64_t> distinct_ids;
  std::vector<int64_t> inverse;
  std::vector<uint32_t> counts;
  const auto find = [&] {
    if (repeats_min != 0 && count_repeats(ids.data(), count) < repeats_min) return false;
    thread_local Distinct distinct;
    distinct.build(ids.data(), count);
    inverse.resize(count);
    distinct_ids.assign(distinct.ids(), distinct.ids() + distinct.size());
    counts.assign(distinct.size(), 0);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t u = distinct.distinct_of(static_cast<uint32_t>(i));
      inverse[i] = u;
      ++counts[u];
    }
    return true;
  };
  bool found = false;
  if (count <= kFewIds) {
    found = find();
  } else {
    nb::gil_scoped_release release;
    found = find();
  }
  if (!found) return nb::none();
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

nb::bytes new_bytes(size_t size) {
  auto bytes = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!bytes.is_valid()) throw nb::python_error();
  return bytes;
}

RowType to_row_type(size_t width) {
  if (width != 2 && width != 4) raise_invalid("width", "must be 2 or 4");
  return width == 2 ? RowType::kFloat16 : RowType::kFloat32;
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
  segment.type = to_row_type(width);
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
  nb::bytes message = new_bytes(total);
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

nb::bytes answer_pull(const NamedTable& table, const nb::bytes& request, size_t ids_at, size_t num_ids,
                      const nb::bytes& head, size_t width) {
  const auto* ids = reinterpret_cast<const uint64_t*>(static_cast<const uint8_t*>(request.data()) + ids_at);
  if (ids_at > request.size() || num_ids > (request.size() - ids_at) / sizeof(uint64_t) ||
      reinterpret_cast<uintptr_t>(ids) % alignof(uint64_t) != 0)
    raise_invalid("ids_at", "must be where num_ids aligned ids are");
  PullTarget target;
  target.type = to_row_type(width);
  nb::bytes message = new_bytes(head.size() + num_ids * table.table.config().dim * width);
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(message.ptr()));
  std::memcpy(out, head.data(), head.size());
  target.rows = out + head.size();
  Status status{Code::kBusy, "", ""};
  if (num_ids <= kFewIds) status = table.table.try_pull(ids, num_ids, target);
  if (status.code == Code::kBusy) {
    nb::gil_scoped_release release;
    status = table.table.pull(ids, num_ids, target);
  }
  check(status, table);
  return message;
}

nb::object rows_of(const nb::bytes& message, size_t at, size_t num_rows, size_t dim, size_t width) {
  const nb::dlpack::dtype dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), static_cast<uint8_t>(8 * width),
                                1};
  to_row_type(width);
  auto* rows = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(message.ptr())) + at;
  if (dim == 0 || at > message.size() || num_rows > (message.size() - at) / width / dim ||
      reinterpret_cast<uintptr_t>(rows) % width != 0)
    raise_invalid("at", "must be where the rows are");
  const size_t shape[] = {num_rows, dim};
  return nb::cast(nb::ndarray<nb::numpy>(rows, 2, shape, message, nullptr, dtype));
}

}  // namespace

void bind_batch(nb::module_& module) {
  module.def("mix64", &mix64_all, nb::arg("ids"),
             "The 64-bit hash of every id: uint64 [n] -> uint64 [n]. The finalizer of splitmix64; part of the formats.",
             nb::sig("def mix64(ids: object) -> numpy.typing.NDArray[numpy.uint64]"));
  module.def(
      "unique", [](const IdArray& ids) { return unique(ids, 0); }, nb::arg("ids"),
      "Distinct ids in order of first occurrence: uint64 [n] -> (uint64 [k], int64 [n] index of each id among "
      "them, uint32 [k] how often each occurs).",
      nb::sig("def unique(ids: object) -> tuple[numpy.typing.NDArray[numpy.uint64], "
              "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint32]]"));
  module.def("repeated", &unique, nb::arg("ids"), nb::arg("repeats_min"),
             "As unique; None when fewer than repeats_min (at least 1) of the ids repeat an earlier one.",
             nb::sig("def repeated(ids: object, repeats_min: int) -> tuple[numpy.typing.NDArray[numpy.uint64], "
                     "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint32]] | None"));
  module.def("split", &split, nb::arg("ids"), nb::arg("num_chunks"), nb::arg("num_shards"),
             "Group ids by owning shard: (int64 [n] positions, stable within a shard; int64 [num_shards + 1] where "
             "each shard's begin). Shard i owns chunks [i*C//n, (i+1)*C//n).",
             nb::sig("def split(ids: object, num_chunks: int, num_shards: int) -> "
                     "tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64]]"));
  module.def("crc32c", &crc32c_of, nb::arg("data"), "CRC-32C (Castagnoli) of the bytes.");
  module.def("answer_pull", &answer_pull, nb::arg("table"), nb::arg("request"), nb::arg("ids_at"), nb::arg("num_ids"),
             nb::arg("head"), nb::arg("width"),
             "One bytes object from head and the rows of the ids that stand in request at ids_at, pulled straight into "
             "place; width: bytes of a number, 4 or 2. Large pulls, and those that must wait, do without the GIL.");
  module.def("rows_of", &rows_of, nb::arg("message"), nb::arg("at"), nb::arg("num_rows"), nb::arg("dim"),
             nb::arg("width"),
             "Rows in a message as a writable array over its memory, which lives as long as the array. Only for a "
             "message that nobody else will ever look at.",
             nb::sig("def rows_of(message: bytes, at: int, num_rows: int, dim: int, width: int) -> "
                     "numpy.typing.NDArray[typing.Any]"));
  module.def("gather_message", &gather_message, nb::arg("segments"),
             "One bytes object from literal bytes and rows: each segment is bytes, or (table, uint64 [n] ids, dtype) "
             "for the rows of these ids, float32 or float16, pulled straight into place without the GIL.",
             nb::sig("def gather_message(segments: list[bytes | tuple[object, object, object]]) -> bytes"));
}

}  // namespace embedstore::bind
