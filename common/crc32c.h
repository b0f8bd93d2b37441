#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvferry {

// CRC32C (Castagnoli, RFC 3720 appendix B.4) of `data`, continuing from the crc of what came before
// it.
std::uint32_t Crc32c(std::span<const std::byte> data, std::uint32_t before = 0);

}  // namespace kvferry
