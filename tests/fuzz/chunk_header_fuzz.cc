#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <span>

#include "transport/wire.h"

// Any bytes may come as a chunk or control header. What is accepted must be exactly what a sender
// writes.
namespace {

using kvferry::transport::ChunkHeader;
using kvferry::transport::ControlMessage;
using kvferry::transport::MessageType;
using kvferry::transport::PairKey;

// The key of tests/golden/wire/make_golden.py.
PairKey Key() {
  PairKey key;
  std::iota(key.begin(), key.end(), std::uint8_t{0});
  return key;
}

void Require(bool condition) {
  if (!condition) std::abort();
}

// All but the minor version, which a reader ignores and a writer sets to its own, and with it
// checksum and tag.
template <std::size_t kBytes>
void RequireSameFields(std::span<const std::byte> got, const std::array<std::byte, kBytes>& again,
                       std::size_t crc_at) {
  for (std::size_t i = 0; i < kBytes; ++i) {
    const bool minor = i == 5, tag = i >= 32 && i < 40, crc = i >= crc_at && i < crc_at + 4;
    Require(minor || tag || crc || got[i] == again[i]);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const auto parsed = kvferry::transport::ParseChunkHeader(bytes);
  if (parsed.ok()) {
    std::array<std::byte, kvferry::transport::kChunkHeaderBytes> again;
    kvferry::transport::EncodeChunkHeader(*parsed, Key(), again);
    RequireSameFields(bytes, again, 100);
  }
  Require(!kvferry::transport::DecodeChunkHeader(bytes, Key()).ok() || parsed.ok());
  for (int type = 0; type < 10; ++type) {
    const auto message =
        kvferry::transport::DecodeControl(bytes, static_cast<MessageType>(type), Key());
    if (!message.ok()) continue;
    std::array<std::byte, kvferry::transport::kControlHeaderBytes> again;
    kvferry::transport::EncodeControl(*message, Key(), again);
    RequireSameFields(bytes, again, 92);
  }
  return 0;
}
