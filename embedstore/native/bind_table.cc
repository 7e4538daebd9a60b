#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "native/bind.h"

namespace embedstore::bind {
namespace {

using CountArray = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using TimeArray = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BoolOut = nb::ndarray<bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using RowsOut = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A chunk's share of the table's capacity; 0 stands for none.
ChunkLimits to_limits(const TableConfig& config, int64_t ttl_ms, uint64_t rows_max, uint64_t bytes_max) {
  ChunkLimits limits;
  limits.ttl_ms = ttl_ms;
  const auto share = [&](const char* field, uint64_t rows) {
    if (rows == 0)
      raise_invalid(std::string("TableSpec.") + field,
                    "leaves some of the " + std::to_string(config.num_chunks) + " chunks without room for a row");
    limits.rows_max = static_cast<uint32_t>(std::min<uint64_t>(limits.rows_max, rows));
  };
  if (rows_max != 0) share("rows_max", rows_max / config.num_chunks);
  if (bytes_max != 0) share("bytes_max", bytes_max / config.num_chunks / bytes_per_row(config));
  return limits;
}

void set_limits(NamedTable& self, int64_t ttl_ms, uint64_t rows_max, uint64_t bytes_max) {
  const ChunkLimits limits = to_limits(self.table.config(), ttl_ms, rows_max, bytes_max);
  nb::gil_scoped_release release;
  self.table.set_limits(limits);
}

nb::dict sweep(NamedTable& self, size_t rows_max, bool dry_run) {
  SweepResult swept;
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.sweep(rows_max, dry_run, swept);
  }
  check(status, self);
  nb::dict result;
  result["rows_visited"] = swept.rows_visited;
  result["rows_expired"] = swept.rows_expired;
  result["rows_moved"] = swept.rows_moved;
  result["bytes_released"] = swept.bytes_released;
  result["complete"] = swept.complete;
  return result;
}

void construct(NamedTable* self, const std::string& name, uint32_t dim, uint32_t num_chunks, uint32_t chunk_begin,
               uint32_t chunk_end, uint32_t optimizer, float lr, float initial_accumulator, float eps, float beta1,
               float beta2, float l1, float l2, float weight_decay, float clip_norm, uint32_t init, float init_scale,
               uint64_t init_seed, uint32_t admission, uint32_t admission_count, double admission_p,
               uint64_t admission_seed, uint64_t admission_bytes, int64_t ttl_ms, uint64_t rows_max, uint64_t bytes_max,
               bool init_on_miss, bool embeddings_only, uint32_t stored, size_t tombstones_max,
               const IdArray& incarnations) {
  if (dim == 0 || dim > 4096) raise_invalid("dim", "must be from 1 to 4096");
  if (num_chunks == 0 || num_chunks > (1u << 16) || (num_chunks & (num_chunks - 1)) != 0)
    raise_invalid("num_chunks", "must be a power of two up to 65536");
  if (chunk_begin > chunk_end || chunk_end > num_chunks) raise_invalid("chunks", "must lie in [0, num_chunks]");
  if (optimizer == 0 || optimizer >= Optimizer::kKinds) raise_invalid("optimizer", "is of an unknown kind");
  if (stored > 3) raise_invalid("stored", "is of an unknown kind");
  if (stored != 0 && !embeddings_only) raise_invalid("stored", "must be 0 for a table with optimizer state");
  if (init > 4) raise_invalid("init", "is of an unknown kind");
  if (admission > 2) raise_invalid("admission", "is of an unknown kind");
  if (admission == 2 && !(admission_p > 0 && admission_p <= 1)) raise_invalid("admission_p", "must lie in (0, 1]");
  if (stored > 3) raise_invalid("rows", "is of an unknown kind");
  if (stored != 0 && !embeddings_only) raise_invalid("rows", "are packed only in a table that holds embeddings alone");
  if (incarnations.shape(0) != chunk_end - chunk_begin) raise_invalid("incarnations", "needs one a chunk");
  std::vector<uint64_t> numbers(incarnations.data(), incarnations.data() + incarnations.shape(0));
  for (const uint64_t number : numbers)
    if (number == 0) raise_invalid("incarnations", "must not be zero");
  TableConfig config;
  config.num_chunks = num_chunks;
  config.dim = dim;
  config.optimizer = {
      static_cast<Optimizer::Kind>(optimizer), initial_accumulator, eps, beta1, beta2, l1, l2, weight_decay, clip_norm};
  config.init = {static_cast<Initializer::Kind>(init), init_scale, init_seed};
  config.embeddings_only = embeddings_only;
  config.stored = static_cast<RowType>(stored);
  config.tombstones_max = tombstones_max;
  config.chunk_begin = chunk_begin;
  config.chunk_end = chunk_end;
  config.init_on_miss = init_on_miss;
  config.lr = lr;
  config.admission = {static_cast<Admission::Kind>(admission), admission_count, admission_p, admission_seed,
                      admission_bytes};
  config.stored = static_cast<RowType>(stored);
  config.limits = to_limits(config, ttl_ms, rows_max, bytes_max);
  new (self) NamedTable(name, config, numbers);
}

void require_length(const NamedTable& table, const char* field, size_t length, size_t wanted) {
  if (length != wanted)
    raise_invalid(table.name + "." + field,
                  "must have length " + std::to_string(wanted) + ", not " + std::to_string(length));
}

void require_matrix(const NamedTable& table, const char* field, size_t rows, size_t columns, size_t wanted) {
  require_length(table, field, rows, wanted);
  const uint32_t dim = table.table.config().dim;
  if (columns != dim)
    raise_invalid(table.name + "." + field,
                  "must have " + std::to_string(dim) + " columns, not " + std::to_string(columns));
}

PullTarget rows_target(const NamedTable& self, const char* field, const RowsOut& out, size_t count) {
  require_matrix(self, field, out.shape(0), out.shape(1), count);
  const bool half = out.dtype() == nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  if (!half && out.dtype() != nb::dtype<float>()) raise_invalid(self.name + "." + field, "must be float32 or float16");
  PullTarget target;
  target.rows = out.data();
  target.type = half ? RowType::kFloat16 : RowType::kFloat32;
  return target;
}

void pull(const NamedTable& self, const IdArray& ids, const RowsOut& out) {
  const PullTarget target = rows_target(self, "out", out, ids.shape(0));
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.pull(ids.data(), ids.shape(0), target);
  }
  check(status, self);
}

void pull_rows(const NamedTable& self, const IdArray& ids, const RowsOut& rows, const BoolOut& found,
               const Out<uint32_t>& updates, const Out<int64_t>& first_seen_s, const Out<int64_t>& last_seen_s) {
  const size_t count = ids.shape(0);
  PullTarget target = rows_target(self, "rows", rows, count);
  require_length(self, "found", found.shape(0), count);
  require_length(self, "updates", updates.shape(0), count);
  require_length(self, "first_seen_s", first_seen_s.shape(0), count);
  require_length(self, "last_seen_s", last_seen_s.shape(0), count);
  target.found = reinterpret_cast<uint8_t*>(found.data());
  target.updates = updates.data();
  target.first_seen_s = first_seen_s.data();
  target.last_seen_s = last_seen_s.data();
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.pull(ids.data(), count, target);
  }
  check(status, self);
}

void peek(const NamedTable& self, const IdArray& ids, const PullTarget& target) {
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.peek(ids.data(), ids.shape(0), target);
  }
  check(status, self);
}

void contains(const NamedTable& self, const IdArray& ids, const BoolOut& found) {
  require_length(self, "found", found.shape(0), ids.shape(0));
  PullTarget target;
  target.found = reinterpret_cast<uint8_t*>(found.data());
  peek(self, ids, target);
}

void last_seen(const NamedTable& self, const IdArray& ids, const BoolOut& found, const Out<int64_t>& last_seen_s) {
  require_length(self, "found", found.shape(0), ids.shape(0));
  require_length(self, "last_seen_s", last_seen_s.shape(0), ids.shape(0));
  PullTarget target;
  target.found = reinterpret_cast<uint8_t*>(found.data());
  target.last_seen_s = last_seen_s.data();
  peek(self, ids, target);
}

PushRequest to_request(const NamedTable& self, const IdArray& ids, const FloatMatrix& grads, int64_t now_ms,
                       const std::optional<CountArray>& counts, const std::optional<TimeArray>& event_times_ms,
                       int64_t event_time_ms, float lr) {
  require_matrix(self, "grads", grads.shape(0), grads.shape(1), ids.shape(0));
  if (event_times_ms) require_length(self, "event_times_ms", event_times_ms->shape(0), ids.shape(0));
  PushRequest request;
  request.ids = ids.data();
  request.gradients = grads.data();
  request.count = ids.shape(0);
  if (counts) require_length(self, "counts", counts->shape(0), ids.shape(0));
  request.counts = counts ? counts->data() : nullptr;
  request.event_times_ms = event_times_ms ? event_times_ms->data() : nullptr;
  request.event_time_ms = event_time_ms;
  request.now_ms = now_ms;
  request.lr = lr;
  return request;
}

void push(NamedTable& self, const IdArray& ids, const FloatMatrix& grads, int64_t now_ms,
          const std::optional<CountArray>& counts, const std::optional<TimeArray>& event_times_ms,
          int64_t event_time_ms, float lr, const OriginTuples& origins, bool validated) {
  PushRequest request = to_request(self, ids, grads, now_ms, counts, event_times_ms, event_time_ms, lr);
  request.validated = validated;
  const std::vector<Origin> sources = to_origins(origins);
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.push(request, sources);
  }
  check(status, self, sources);
}

void validate_push(const NamedTable& self, const IdArray& ids, const FloatMatrix& grads, int64_t now_ms,
                   const std::optional<CountArray>& counts, const std::optional<TimeArray>& event_times_ms,
                   int64_t event_time_ms, float lr) {
  const PushRequest request = to_request(self, ids, grads, now_ms, counts, event_times_ms, event_time_ms, lr);
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.validate_push(request);
  }
  check(status, self);
}

void assign(NamedTable& self, const IdArray& ids, const FloatMatrix& rows, int64_t now_ms, int64_t event_time_ms,
            const OriginTuples& origins) {
  require_matrix(self, "rows", rows.shape(0), rows.shape(1), ids.shape(0));
  const AssignRequest request{ids.data(), rows.data(), ids.shape(0), event_time_ms, now_ms};
  const std::vector<Origin> sources = to_origins(origins);
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.assign(request, sources);
  }
  check(status, self, sources);
}

uint64_t erase(NamedTable& self, const IdArray& ids, uint8_t reason, const OriginTuples& origins) {
  if (reason < 1 || reason > 3) raise_invalid("reason", "must be 1, 2 or 3");
  const std::vector<Origin> sources = to_origins(origins);
  uint64_t removed = 0;
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.erase(ids.data(), ids.shape(0), static_cast<Reason>(reason), sources, removed);
  }
  check(status, self, sources);
  return removed;
}

nb::tuple scan(const NamedTable& self, uint32_t chunk) {
  ScannedChunk rows;
  Status status;
  {
    nb::gil_scoped_release release;
    status = self.table.scan(chunk, rows);
  }
  check(status, self);
  const size_t count = rows.ids.size();
  return nb::make_tuple(to_numpy(std::move(rows.ids), {count}),
                        to_numpy(std::move(rows.embeddings), {count, self.table.config().dim}),
                        to_numpy(std::move(rows.updates), {count}), to_numpy(std::move(rows.first_seen_s), {count}),
                        to_numpy(std::move(rows.last_seen_s), {count}));
}

nb::dict counters(const NamedTable& self) {
  Counters counters;
  {
    nb::gil_scoped_release release;
    counters = self.table.counters();
  }
  nb::dict result;
  result["pulled_rows"] = counters.pulled_rows;
  result["missed_rows"] = counters.missed_rows;
  result["pushed_rows"] = counters.changes.pushed;
  result["inserted_rows"] = counters.changes.inserted;
  result["dropped_rows"] = counters.changes.dropped;
  result["expired_rows"] = counters.changes.expired;
  result["evicted_rows"] = counters.changes.evicted;
  result["tombstones"] = counters.tombstones;
  result["sketch_bytes"] = counters.sketch_bytes;
  result["sketch_halvings"] = counters.sketch_halvings;
  return result;
}

}  // namespace

nb::class_<NamedTable> bind_table(nb::module_& module) {
  auto table = nb::class_<NamedTable>(
      module, "Table", "One table of this process. Every method may be called from any thread and drops the GIL.");
  table.def("__init__", &construct, nb::kw_only(), nb::arg("name"), nb::arg("dim"), nb::arg("num_chunks"),
            nb::arg("chunk_begin"), nb::arg("chunk_end"), nb::arg("optimizer"), nb::arg("lr"),
            nb::arg("initial_accumulator"), nb::arg("eps"), nb::arg("beta1"), nb::arg("beta2"), nb::arg("l1"),
            nb::arg("l2"), nb::arg("weight_decay"), nb::arg("clip_norm"), nb::arg("init"), nb::arg("init_scale"),
            nb::arg("init_seed"), nb::arg("admission") = 0, nb::arg("admission_count") = 1,
            nb::arg("admission_p") = 1.0, nb::arg("admission_seed") = 0, nb::arg("admission_bytes") = 0,
            nb::arg("ttl_ms") = -1, nb::arg("rows_max") = 0, nb::arg("bytes_max") = 0, nb::arg("init_on_miss"),
            nb::arg("embeddings_only"), nb::arg("stored") = 0, nb::arg("tombstones_max"), nb::arg("incarnations"),
            "optimizer: 1 SGD, 2 momentum (beta1), 3 Adagrad, 4 row-wise Adagrad, 5 Adam, 6 RMSProp (beta2), 7 FTRL "
            "(beta1). clip_norm: 0 for none. init: 0 zeros, 1 constant, 2 uniform, 3 normal, 4 truncated normal. "
            "incarnations: nonzero uint64, one for each owned chunk. admission: 0 everything, 1 admission_count, 2 "
            "admission_p. ttl_ms: -1 for ever. rows_max, bytes_max: of the table, 0 for no bound. stored: 0 float32, 1 "
            "float16, 2 int8, 3 int4.");
  table.def(
      "__len__", [](const NamedTable& self) { return self.table.size(); }, "Rows.",
      nb::call_guard<nb::gil_scoped_release>());
  table.def_prop_ro(
      "memory_bytes", [](const NamedTable& self) { return self.table.memory_bytes(); },
      "Bytes held for rows, index, versions and tombstones.", nb::call_guard<nb::gil_scoped_release>());
  table.def(
      "set_lr", [](NamedTable& self, float lr) { self.table.set_lr(lr); }, nb::arg("lr"),
      "Learning rate of later pushes that give none.");
  table.def("set_limits", &set_limits, nb::kw_only(), nb::arg("ttl_ms"), nb::arg("rows_max"), nb::arg("bytes_max"),
            "Time to live (-1: for ever) and capacity (0: no bound) from now on.");
  table.def(
      "check_limits",
      [](const NamedTable& self, int64_t ttl_ms, uint64_t rows_max, uint64_t bytes_max) {
        to_limits(self.table.config(), ttl_ms, rows_max, bytes_max);
      },
      nb::kw_only(), nb::arg("ttl_ms"), nb::arg("rows_max"), nb::arg("bytes_max"),
      "Raise what set_limits() would raise; change nothing.");
  table.def("sweep", &sweep, nb::arg("rows_max"), nb::arg("dry_run"),
            "Go on sweeping through at most rows_max row numbers; with dry_run count what a whole round would find.",
            nb::sig("def sweep(self, rows_max: int, dry_run: bool) -> dict[str, int]"));
  table.def("pull", &pull, nb::arg("ids"), nb::arg("out"),
            "Write the rows of uint64 [n] ids to out, [n, dim] float32 or float16. An id without a row reads as the "
            "table's on_miss. Changes nothing.",
            nb::sig("def pull(self, ids: object, out: object) -> None"));
  table.def("pull_rows", &pull_rows, nb::arg("ids"), nb::arg("rows"), nb::arg("found"), nb::arg("updates"),
            nb::arg("first_seen_s"), nb::arg("last_seen_s"),
            "pull() with metadata: found bool [n], updates uint32 [n], first_seen_s and last_seen_s int64 [n].",
            nb::sig("def pull_rows(self, ids: object, rows: object, found: object, updates: object, first_seen_s: "
                    "object, last_seen_s: object) -> None"));
  table.def("contains", &contains, nb::arg("ids"), nb::arg("found"), "Write to found, bool [n], which ids have a row.",
            nb::sig("def contains(self, ids: object, found: object) -> None"));
  table.def("last_seen", &last_seen, nb::arg("ids"), nb::arg("found"), nb::arg("last_seen_s"),
            "contains(), and when each row was last seen, int64 [n]. Counts as no pull.",
            nb::sig("def last_seen(self, ids: object, found: object, last_seen_s: object) -> None"));
  table.def("push", &push, nb::arg("ids"), nb::arg("grads"), nb::kw_only(), nb::arg("now_ms"),
            nb::arg("counts") = nb::none(), nb::arg("event_times_ms") = nb::none(), nb::arg("event_time_ms") = -1,
            nb::arg("lr") = -1.0f, nb::arg("origins") = nb::list(), nb::arg("validated") = false,
            "Apply float32 [n, dim] gradients; equal ids are summed. -1: no event time, the table's lr.",
            nb::sig("def push(self, ids: object, grads: object, *, now_ms: int, counts: object | None = None, "
                    "event_times_ms: object | None = None, event_time_ms: int = -1, lr: float = -1.0, origins: "
                    "list[tuple[str, int, int]] = [], validated: "
                    "bool = False) -> None"));
  table.def("validate_push", &validate_push, nb::arg("ids"), nb::arg("grads"), nb::kw_only(), nb::arg("now_ms"),
            nb::arg("counts") = nb::none(), nb::arg("event_times_ms") = nb::none(), nb::arg("event_time_ms") = -1,
            nb::arg("lr") = -1.0f, "Raise what push() would raise for these arguments; touch nothing.",
            nb::sig("def validate_push(self, ids: object, grads: object, *, now_ms: int, counts: object | None = "
                    "None, event_times_ms: object | None = None, event_time_ms: int = -1, lr: float = -1.0) -> None"));
  table.def("assign", &assign, nb::arg("ids"), nb::arg("rows"), nb::kw_only(), nb::arg("now_ms"),
            nb::arg("event_time_ms") = -1, nb::arg("origins") = nb::list(),
            "Write float32 [n, dim] embeddings; the last of equal ids wins.",
            nb::sig("def assign(self, ids: object, rows: object, *, now_ms: int, event_time_ms: int = -1, origins: "
                    "list[tuple[str, int, int]] = []) -> None"));
  table.def(
      "erase", &erase, nb::arg("ids"), nb::kw_only(), nb::arg("reason") = 1, nb::arg("origins") = nb::list(),
      "Remove rows; returns how many were there. reason: 1 erased, 2 expired, 3 evicted.",
      nb::sig("def erase(self, ids: object, *, reason: int = 1, origins: list[tuple[str, int, int]] = []) -> int"));
  table.def("scan", &scan, nb::arg("chunk"),
            "All rows of a chunk at one instant: (ids, embeddings, updates, first_seen_s, last_seen_s).",
            nb::sig("def scan(self, chunk: int) -> tuple[numpy.typing.NDArray[numpy.uint64], "
                    "numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.uint32], "
                    "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64]]"));
  table.def("counters", &counters, "Counters since the table was made, and its present tombstones.",
            nb::sig("def counters(self) -> dict[str, int]"));
  return table;
}

}  // namespace embedstore::bind
