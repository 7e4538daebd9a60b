// Which occurrence of an id lets it have a row: the rule of a table. Immutable, callable from any thread.
//
//   kAll          every id at once
//   kMinCount     the occurrence number `min_count`
//   kProbability  the first occurrence that a coin of probability p lets in. The coins of an id are not tossed one by
//                 one: the number of the first success is drawn at once, as a pure function of (seed, id), so that
//                 every process and every replay draws the same one. With m the top 53 bits of mix64(id ^ mix64(seed)),
//                 v = (2^53 - m) / 2^53 in (0, 1] and q = 1 - p, it is the smallest k >= 1 with q^k <= v, which has the
//                 geometric distribution of such coins.
//
// q^k is never computed by a library: the powers q^(2^j) come from repeated squaring, and k - 1 is put together from
// the largest j down, taking 2^j whenever the product stays above v. Only correctly rounded multiplications and
// comparisons in binary64 are involved, so every machine gets the same integer. It is capped at 2^32 - 1.
#pragma once

#include <cstddef>
#include <cstdint>

namespace embedstore {

struct Admission {
  enum class Kind : uint32_t { kAll = 0, kMinCount = 1, kProbability = 2 };

  static constexpr uint64_t kMemoryBytesDefault = uint64_t{16} << 20;

  Kind kind = Kind::kAll;
  uint32_t min_count = 1;     // kMinCount
  double p = 1;               // kProbability: above 0, at most 1
  uint64_t seed = 0;          // kProbability
  uint64_t memory_bytes = 0;  // of all sketches of the table together; 0: the default

  bool counts() const noexcept { return kind != Kind::kAll; }
  // The number of occurrences that admits the id: from 1 to 2^32 - 1, or 0 with kAll.
  uint64_t needed(uint64_t id) const noexcept;
  // How large the sketch of one chunk may become; 0 with kAll.
  size_t sketch_bytes_max(uint32_t num_chunks) const noexcept;
};

}  // namespace embedstore
