#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <span>

// Little-endian integers at byte offsets. The caller has checked that they are inside.
namespace kvferry {

static_assert(std::endian::native == std::endian::little,
              "a big-endian host needs byte swaps here, and only here");

template <std::integral T>
void StoreLittle(std::span<std::byte> bytes, std::size_t offset, T value) {
  std::memcpy(bytes.subspan(offset, sizeof(T)).data(), &value, sizeof(T));
}

template <std::integral T>
T LoadLittle(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.subspan(offset, sizeof(T)).data(), sizeof(T));
  return value;
}

}  // namespace kvferry
