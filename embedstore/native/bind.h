// What the binding files share. Only files named bind_* know Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "native/table.h"

namespace embedstore::bind {

namespace nb = nanobind;

using IdArray = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OriginTuples = std::vector<std::tuple<std::string, int64_t, int64_t>>;

// A native table and the name that its errors carry.
struct NamedTable {
  NamedTable(std::string name_, const TableConfig& config, const std::vector<uint64_t>& incarnations)
      : name(std::move(name_)), table(config, incarnations) {}

  std::string name;
  Table table;
};

std::vector<Origin> to_origins(const OriginTuples& tuples);

// Raises the Python error of a status that is not ok. Needs the GIL.
void check(const Status& status, const NamedTable& table, const std::vector<Origin>& origins = {});
[[noreturn]] void raise_invalid(const std::string& field, const std::string& problem);

// A numpy array that takes over a vector's memory.
template <class T>
nb::object to_numpy(std::vector<T>&& values, std::initializer_list<size_t> shape) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(owned->data(), shape.size(), shape.begin(), owner));
}

void bind_batch(nb::module_& module);
nb::class_<NamedTable> bind_table(nb::module_& module);
void bind_sync(nb::class_<NamedTable>& table);

}  // namespace embedstore::bind
