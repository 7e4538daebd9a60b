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

#if defined(__x86_64__)
#define EMBEDSTORE_CRC_HARDWARE
__attribute__((target("sse4.2"))) uint32_t crc_hardware(const uint8_t* p, size_t n, uint32_t crc) noexcept {
  uint64_t state = ~crc;
  for (; n >= 8; p += 8, n -= 8) state = _mm_crc32_u64(state, load64(p));
  auto tail = static_cast<uint32_t>(state);
  for (; n > 0; ++p, --n) tail = _mm_crc32_u8(tail, *p);
  return ~tail;
}
bool has_hardware() noexcept { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__) && defined(__linux__)
#define EMBEDSTORE_CRC_HARDWARE
__attribute__((target("+crc"))) uint32_t crc_hardware(const uint8_t* p, size_t n, uint32_t crc) noexcept {
  uint32_t state = ~crc;
  for (; n >= 8; p += 8, n -= 8) state = __crc32cd(state, load64(p));
  for (; n > 0; ++p, --n) state = __crc32cb(state, *p);
  return ~state;
}
bool has_hardware() noexcept { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
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
