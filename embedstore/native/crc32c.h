// CRC-32C (Castagnoli, RFC 3720), with the processor's instruction where it has one. Callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace embedstore {

// `crc` is the checksum of what came before, 0 at the start.
uint32_t crc32c(const void* data, size_t num_bytes, uint32_t crc = 0) noexcept;

// The table-driven form, whatever the machine has.
uint32_t crc32c_portable(const void* data, size_t num_bytes, uint32_t crc = 0) noexcept;

}  // namespace embedstore
