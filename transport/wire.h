#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "transport/transport.h"

// The bytes of data-plane headers (docs/protocol.md): little-endian, fixed width, checked before
// anything is believed.
namespace kvferry::transport {

inline constexpr std::uint8_t kWireMajor = 1;
inline constexpr std::uint8_t kWireMinor = 0;
inline constexpr std::size_t kChunkHeaderBytes = 128;
inline constexpr std::size_t kControlHeaderBytes = 96;

enum class ChunkKind : std::uint16_t { kBlocks = 1, kSinks = 2, kWindow = 3 };
enum class CheckKind : std::uint8_t { kCrc32c = 1 };

// 16 random bytes per pair of workers, exchanged in the handshake inside mTLS. Keys the auth_tag
// (SipHash-2-4).
using PairKey = std::array<std::uint8_t, 16>;

// Payload order: layer, block, KV head; sinks and window: layer, [K: head, token, channel][V].
struct ChunkHeader {
  TransferId transfer_id;
  Incarnation sender_incarnation{};
  Epoch epoch{};
  std::uint32_t flags = 0;      // none defined: must be 0
  std::uint32_t chunk_seq = 0;  // 0.. within the transfer, over all kinds
  std::uint32_t slot = 0;       // the sender's hint of its send slot; the receiver chooses its own
  std::uint16_t layer_begin = 0, layer_count = 0;
  std::uint16_t kv_head_begin = 0, kv_head_count = 0;
  std::uint32_t token_begin = 0, token_count = 0;
  std::uint16_t head_dim = 0;
  ChunkKind kind = ChunkKind::kBlocks;
  CheckKind check_kind = CheckKind::kCrc32c;
  std::uint64_t codec_hash = 0;
  std::uint64_t payload_check = 0;
  std::uint32_t payload_bytes = 0;
};

void EncodeChunkHeader(const ChunkHeader& header, const PairKey& key,
                       std::span<std::byte, kChunkHeaderBytes> out);
// kDataLoss: magic, checksum, tag or a field that no sender writes; kFailedPrecondition: another
// major version.
absl::StatusOr<ChunkHeader> DecodeChunkHeader(std::span<const std::byte> bytes, const PairKey& key);
// The same without the tag, for who has no key: `kvferry inspect`.
absl::StatusOr<ChunkHeader> ParseChunkHeader(std::span<const std::byte> bytes);

// ACK, NACK, COMMIT, ADOPTED, ABORT, ABORT_ACK: one layout, fields that a type does not use are 0.
struct ControlMessage {
  MessageType type{};
  TransferId transfer_id;
  Incarnation sender_incarnation{};
  Epoch epoch{};
  std::uint32_t chunk_seq = 0;      // ACK, NACK
  std::uint32_t chunks = 0;         // COMMIT: how many chunks the transfer has
  std::uint64_t payload_bytes = 0;  // COMMIT: their sum
  std::int32_t first_token = -1;    // COMMIT: sampled by prefill
  std::uint32_t cause = 0;          // NACK, ABORT: an absl::StatusCode
};

void EncodeControl(const ControlMessage& message, const PairKey& key,
                   std::span<std::byte, kControlHeaderBytes> out);
absl::StatusOr<ControlMessage> DecodeControl(std::span<const std::byte> bytes, MessageType type,
                                             const PairKey& key);

}  // namespace kvferry::transport
