#include <sodium/crypto_shorthash.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "common/coding.h"
#include "common/crc32c.h"
#include "transport/wire.h"

// Any bytes may come as a chunk or control header. What is accepted must be exactly what a sender
// writes.
namespace {

using kvferry::transport::ChunkHeader;
using kvferry::transport::ControlMessage;
using kvferry::transport::MessageType;
using kvferry::transport::PairKey;

// docs/protocol.md
constexpr std::size_t kTagAt = 32, kChunkCrcAt = 100, kControlCrcAt = 92;

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
    const bool minor = i == 5, tag = i >= kTagAt && i < kTagAt + 8,
               crc = i >= crc_at && i < crc_at + 4;
    Require(minor || tag || crc || got[i] == again[i]);
  }
}

void Read(std::span<const std::byte> bytes) {
  const auto parsed = kvferry::transport::ParseChunkHeader(bytes);
  if (parsed.ok()) {
    std::array<std::byte, kvferry::transport::kChunkHeaderBytes> again;
    kvferry::transport::EncodeChunkHeader(*parsed, Key(), again);
    RequireSameFields(bytes, again, kChunkCrcAt);
  }
  Require(!kvferry::transport::DecodeChunkHeader(bytes, Key()).ok() || parsed.ok());
  for (int type = 0; type < 10; ++type) {
    const auto message =
        kvferry::transport::DecodeControl(bytes, static_cast<MessageType>(type), Key());
    if (!message.ok()) continue;
    std::array<std::byte, kvferry::transport::kControlHeaderBytes> again;
    kvferry::transport::EncodeControl(*message, Key(), again);
    RequireSameFields(bytes, again, kControlCrcAt);
  }
}

// Checksum and tag of a sender that has the key and writes what it likes: no mutation guesses them.
void ReadSealed(std::span<const std::byte> bytes, std::size_t crc_at) {
  std::vector<std::byte> sealed(bytes.begin(), bytes.end());
  const std::span<std::byte> tag = std::span(sealed).subspan(kTagAt, crypto_shorthash_BYTES);
  std::fill(tag.begin(), tag.end(), std::byte{0});
  kvferry::StoreLittle<std::uint32_t>(sealed, crc_at,
                                      kvferry::Crc32c(std::span(sealed).first(crc_at)));
  std::array<unsigned char, crypto_shorthash_BYTES> hash;
  crypto_shorthash(hash.data(), reinterpret_cast<const unsigned char*>(sealed.data()),
                   sealed.size(), Key().data());
  std::memcpy(tag.data(), hash.data(), hash.size());
  Read(sealed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  Read(bytes);
  if (size == kvferry::transport::kChunkHeaderBytes) ReadSealed(bytes, kChunkCrcAt);
  if (size == kvferry::transport::kControlHeaderBytes) ReadSealed(bytes, kControlCrcAt);
  return 0;
}
