#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvcodec/format.h"

// Single codes and 16-bit values of a block, straight from the element formulas of format.h. Clear,
// not fast: the reference, inspection and tests use it.
namespace kvferry::codec {

inline std::uint16_t LoadU16(const std::byte* from, int index) {
  std::uint16_t value;
  std::memcpy(&value, from + 2 * static_cast<std::ptrdiff_t>(index), sizeof value);
  return value;
}

inline void StoreU16(std::byte* to, int index, std::uint16_t value) {
  std::memcpy(to + 2 * static_cast<std::ptrdiff_t>(index), &value, sizeof value);
}

inline std::uint32_t LoadWord(const std::byte* from, int index) {
  std::uint32_t value;
  std::memcpy(&value, from + 4 * static_cast<std::ptrdiff_t>(index), sizeof value);
  return value;
}

// ORs a code into a region that was zeroed.
inline void PutCode(std::byte* region, const format::CodePlace& at, int bits, std::uint32_t code) {
  const auto or_word = [&](int index, std::uint32_t mask) {
    const std::uint32_t value = LoadWord(region, index) | mask;
    std::memcpy(region + 4 * static_cast<std::ptrdiff_t>(index), &value, sizeof value);
  };
  if (at.spread == 0) {
    or_word(at.word, code << at.shift);
    return;
  }
  for (int i = 0; i < bits; ++i) or_word(at.word + i * at.spread, ((code >> i) & 1u) << at.shift);
}

inline std::uint32_t GetCode(const std::byte* region, const format::CodePlace& at, int bits) {
  if (at.spread == 0) return (LoadWord(region, at.word) >> at.shift) & ((1u << bits) - 1);
  std::uint32_t code = 0;
  for (int i = 0; i < bits; ++i) {
    code |= ((LoadWord(region, at.word + i * at.spread) >> at.shift) & 1u) << i;
  }
  return code;
}

}  // namespace kvferry::codec
