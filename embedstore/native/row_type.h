// How the numbers of an embedding are kept in a row, and how many bytes they take. The numbers of the enum are part of
// the Python binding.
//
//   kFloat32  as they are
//   kFloat16  IEEE binary16
//   kInt8     one byte a value, in groups of 32 with a float16 scale and a float16 bias each
//   kInt4     half a byte a value, in the same groups
//
// Only float32 rows can be trained: the others are for tables that hold embeddings alone. quantize.h has the formats.
#pragma once

#include <cstddef>
#include <cstdint>

namespace embedstore {

enum class RowType : uint8_t { kFloat32 = 0, kFloat16 = 1, kInt8 = 2, kInt4 = 3 };

inline constexpr uint32_t kQuantGroup = 32;  // values that share a scale and a bias; the last group may be shorter

// Bytes of a packed embedding, without padding behind it.
constexpr size_t packed_bytes(RowType type, uint32_t dim) noexcept {
  const size_t groups = (size_t{dim} + kQuantGroup - 1) / kQuantGroup;
  switch (type) {
    case RowType::kFloat16:
      return 2 * size_t{dim};
    case RowType::kInt8:
      return 4 * groups + dim;
    case RowType::kInt4:
      return 4 * groups + (size_t{dim} + 1) / 2;
    case RowType::kFloat32:
      break;
  }
  return 4 * size_t{dim};
}

}  // namespace embedstore
