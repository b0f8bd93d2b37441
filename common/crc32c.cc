#include "common/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace kvferry {

std::uint32_t Crc32c(std::span<const std::byte> data, std::uint32_t before) {
  constexpr std::size_t kMostBytes = std::size_t{1} << 30;  // ISA-L takes an int
  std::uint32_t state = ~before;
  while (!data.empty()) {
    const std::size_t bytes = std::min(data.size(), kMostBytes);
    // ISA-L reads through a pointer that it forgot to make const.
    auto* begin = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(data.data()));
    state = crc32_iscsi(begin, static_cast<int>(bytes), state);
    data = data.subspan(bytes);
  }
  return ~state;
}

}  // namespace kvferry
