#include "native/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace embedstore {
namespace {

// tables[k][b]: the effect of byte b followed by k zero bytes ("slicing by 8", Kounavis and Berry 2005).
constexpr std::array<std::array<uint32_t, 256>, 8> make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (size_t b = 0; b < 256; ++b) tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xFF];
  return tables;
}
constexpr auto kTables = make_tables();

uint64_t load64(const uint8_t* p) noexcept {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

#if defined(__x86_64__) || (defined(__aarch64__) && defined(__linux__))
#define EMBEDSTORE_CRC_HARDWARE
#if defined(__x86_64__)
#define EMBEDSTORE_CRC_TARGET __attribute__((target("sse4.2")))
EMBEDSTORE_CRC_TARGET uint32_t step64(uint32_t state, uint64_t word) noexcept {
  return static_cast<uint32_t>(_mm_crc32_u64(state, word));
}
EMBEDSTORE_CRC_TARGET uint32_t step8(uint32_t state, uint8_t byte) noexcept { return _mm_crc32_u8(state, byte); }
bool has_hardware() noexcept { return __builtin_cpu_supports("sse4.2"); }
#else
#define EMBEDSTORE_CRC_TARGET __attribute__((target("+crc")))
EMBEDSTORE_CRC_TARGET uint32_t step64(uint32_t state, uint64_t word) noexcept { return __crc32cd(state, word); }
EMBEDSTORE_CRC_TARGET uint32_t step8(uint32_t state, uint8_t byte) noexcept { return __crc32cb(state, byte); }
bool has_hardware() noexcept { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

// What `num_bytes` zero bytes do to a state. It is linear over bits: the effect of the whole is the xor of the effects
// of its four bytes, which stand in four tables. The effect of twice as many zeros is the effect applied twice.
using Skip = std::array<std::array<uint32_t, 256>, 4>;
constexpr uint32_t skip_by(const std::array<uint32_t, 32>& bits, uint32_t state) {
  uint32_t result = 0;
  for (unsigned bit = 0; state != 0; ++bit, state >>= 1)
    if ((state & 1) != 0) result ^= bits[bit];
  return result;
}
constexpr Skip make_skip(size_t num_bytes_power_of_two) {
  std::array<uint32_t, 32> bits{};
  for (unsigned bit = 0; bit < 32; ++bit) {
    const uint32_t state = uint32_t{1} << bit;
    bits[bit] = (state >> 8) ^ kTables[0][state & 0xFF];
  }
  for (size_t n = 1; n < num_bytes_power_of_two; n *= 2) {
    std::array<uint32_t, 32> twice{};
    for (unsigned bit = 0; bit < 32; ++bit) twice[bit] = skip_by(bits, bits[bit]);
    bits = twice;
  }
  Skip skip{};
  for (unsigned byte = 0; byte < 4; ++byte)
    for (uint32_t value = 0; value < 256; ++value) skip[byte][value] = skip_by(bits, value << (8 * byte));
  return skip;
}

uint32_t apply(const Skip& skip, uint32_t state) noexcept {
  return skip[0][state & 0xFF] ^ skip[1][(state >> 8) & 0xFF] ^ skip[2][(state >> 16) & 0xFF] ^ skip[3][state >> 24];
}

// The instruction takes one word a cycle but answers three cycles later: three parts go side by side, and joining them
// moves the earlier ones over the later.
template <size_t kPart>
EMBEDSTORE_CRC_TARGET uint32_t three_parts(const uint8_t*& p, size_t& n, uint32_t state) noexcept {
  static constexpr Skip kSkip = make_skip(kPart);
  for (; n >= 3 * kPart; p += 3 * kPart, n -= 3 * kPart) {
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t i = 0; i < kPart; i += 8) {
      state = step64(state, load64(p + i));
      second = step64(second, load64(p + kPart + i));
      third = step64(third, load64(p + 2 * kPart + i));
    }
    state = apply(kSkip, apply(kSkip, state) ^ second) ^ third;
  }
  return state;
}

EMBEDSTORE_CRC_TARGET uint32_t crc_hardware(const uint8_t* p, size_t n, uint32_t crc) noexcept {
  uint32_t state = three_parts<4096>(p, n, ~crc);
  state = three_parts<256>(p, n, state);
  for (; n >= 8; p += 8, n -= 8) state = step64(state, load64(p));
  for (; n > 0; ++p, --n) state = step8(state, *p);
  return ~state;
}
#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t num_bytes, uint32_t crc) noexcept {
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; num_bytes >= 8; p += 8, num_bytes -= 8) {
    const uint64_t word = load64(p) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; num_bytes > 0; ++p, --num_bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xFF];
  return ~crc;
}

uint32_t crc32c(const void* data, size_t num_bytes, uint32_t crc) noexcept {
#ifdef EMBEDSTORE_CRC_HARDWARE
  static const bool hardware = has_hardware();
  if (hardware) return crc_hardware(static_cast<const uint8_t*>(data), num_bytes, crc);
#endif
  return crc32c_portable(data, num_bytes, crc);
}

}  // namespace embedstore
