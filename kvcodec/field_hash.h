#pragma once

#include <cstdint>

namespace kvferry::codec {

// FNV-1a, 64 bit, over 32-bit little-endian fields.
class FieldHash {
 public:
  void Add(std::uint32_t field) {
    for (int i = 0; i < 4; ++i) {
      hash_ = (hash_ ^ ((field >> (8 * i)) & 0xffu)) * 0x100000001b3u;
    }
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace kvferry::codec
