// Embeddings packed as float16, int8 or int4, and back (row_type.h).
//
// What is kept is finite: a NaN counts as 0, and a number beyond +-65504, the largest of float16, as that limit.
// Float16 rounds to nearest even. int8 (L = 255) and int4 (L = 15) cut a row into groups of 32 numbers, the last
// perhaps shorter. Packed: for each group a float16 scale s and a float16 bias b, then the codes, one byte each, or 16
// bytes a group with code i in the low half of byte i and code i + 16 in its high half (a last group of n: i + ceil(n /
// 2)).
//
//   decode   y = min(b + s * code, 65504), in float32; the product is exact, so fused or not makes no difference
//   encode   lo, hi = the smallest and largest of the group; b = float16(lo), -0 as 0; q = (hi - b) / L
//            s = float16(q), or where q is below the normal numbers of float16: k units of 2^-24 with k = ceil(q in
//            units), made smaller to ceil(k * c / L) with c the code of hi under k
//            then s = max(s, unit of b in the last place); when s is normal and above that unit, float16(q * (1 -
//            .2/L)) and float16(q * (1 + .2/L)) are tried too, if normal, not below that unit and with b + s * L within
//            the limit, and the least square error wins code = (x - b) / s, clamped to [0, L], rounded to nearest even
//
// Error: |x - y| <= s / 2 (within 2^-20 of it) for numbers within the limits, with s about (hi - lo) / L, but at least
// 2^-24 and at least the last place of the bias: a group far from zero is kept to the precision that float16 has there.
//
// Law: what was decoded is encoded to what decodes to the same bits. The smallest number has code 0, so b comes back;
// the largest has code L and q comes back as s, or s was the last place of b and stays it, or s is subnormal, where all
// arithmetic is exact and k is its own correction; of the three scales that one then has no error at all. So a chain of
// followers ends with the numbers of its first link.
//
// All instruction sets give the same bits. Neither side needs alignment. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "native/row_type.h"

namespace embedstore {

// `values`: float32 [dim]. Writes packed_bytes(type, dim) bytes.
using EncodeRow = void (*)(const void* values, uint32_t dim, std::byte* packed) noexcept;
// Writes `dim` numbers of the type asked for.
using DecodeRow = void (*)(const std::byte* packed, uint32_t dim, void* out) noexcept;

// One instruction set's functions, by RowType of the packed row. Float32 rows are copied; they become float16 as half.h
// says, and so may overflow to infinity.
struct QuantKernels {
  const char* name;
  EncodeRow encode[4];
  DecodeRow to_float[4];
  DecodeRow to_half[4];
};

// Those that this processor can run; the portable ones first, the fastest last.
std::span<const QuantKernels> quant_kernels() noexcept;

EncodeRow encoder(RowType stored) noexcept;
// `wanted` is kFloat32 or kFloat16. To be asked once a batch.
DecodeRow decoder(RowType stored, RowType wanted) noexcept;

}  // namespace embedstore
