#include "transport/wire.h"

#include <sodium/crypto_shorthash.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/coding.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace kvferry::transport {
namespace {

static_assert(crypto_shorthash_BYTES == 8 && crypto_shorthash_KEYBYTES == 16, "SipHash-2-4");

// Offsets of the fields that every header has, and of those of each kind (docs/protocol.md).
namespace at {
constexpr std::size_t kMagic = 0, kMajor = 4, kMinor = 5, kHeaderLen = 6, kTransferId = 8,
                      kIncarnation = 24, kAuthTag = 32, kEpoch = 40, kFlags = 44, kChunkSeq = 48;
// CHUNK
constexpr std::size_t kSlot = 52, kLayerBegin = 56, kLayerCount = 58, kHeadBegin = 60,
                      kHeadCount = 62, kTokenBegin = 64, kTokenCount = 68, kHeadDim = 72,
                      kKind = 74, kCheckKind = 76, kZero = 77, kCodecHash = 80, kPayloadCheck = 88,
                      kPayloadLen = 96, kChunkCrc = 100, kChunkReserved = 104;
// control messages
constexpr std::size_t kType = 52, kChunks = 56, kFirstToken = 60, kPayloadBytes = 64, kCause = 72,
                      kControlReserved = 76, kControlCrc = 92;
}  // namespace at

constexpr std::uint32_t kChunkMagic = 0x3146564b;    // "KVF1"
constexpr std::uint32_t kControlMagic = 0x4346564b;  // "KVFC"

std::uint64_t AuthTag(std::span<const std::byte> header, const PairKey& key) {
  std::array<std::byte, kMaxHeaderBytes> copy{};
  std::copy(header.begin(), header.end(), copy.begin());
  StoreLittle<std::uint64_t>(copy, at::kAuthTag, 0);
  std::array<unsigned char, crypto_shorthash_BYTES> tag{};
  crypto_shorthash(tag.data(), reinterpret_cast<const unsigned char*>(copy.data()), header.size(),
                   key.data());
  std::uint64_t value;
  std::memcpy(&value, tag.data(), sizeof(value));
  return value;
}

// Over the bytes before the crc, the auth_tag taken as zero.
std::uint32_t HeaderCrc(std::span<const std::byte> header, std::size_t crc_offset) {
  constexpr std::array<std::byte, 8> kZeroTag{};
  std::uint32_t crc = Crc32c(header.first(at::kAuthTag));
  crc = Crc32c(kZeroTag, crc);
  return Crc32c(header.subspan(at::kEpoch, crc_offset - at::kEpoch), crc);
}

bool AllZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

void Seal(std::span<std::byte> header, std::size_t crc_offset, const PairKey& key) {
  StoreLittle<std::uint32_t>(header, crc_offset, HeaderCrc(header, crc_offset));
  StoreLittle<std::uint64_t>(header, at::kAuthTag, AuthTag(header, key));
}

// What every header must satisfy before a field of it is believed.
absl::Status CheckEnvelope(std::span<const std::byte> header, std::size_t want_bytes,
                           std::uint32_t magic, std::size_t crc_offset) {
  if (header.size() != want_bytes)
    return absl::DataLossError(
        absl::StrCat("header of ", header.size(), " bytes, want ", want_bytes));
  if (LoadLittle<std::uint32_t>(header, at::kMagic) != magic)
    return absl::DataLossError("header magic is wrong");
  if (const int major = LoadLittle<std::uint8_t>(header, at::kMajor); major != kWireMajor) {
    return absl::FailedPreconditionError(
        absl::StrCat("wire version ", major, ", this side speaks ", int{kWireMajor}));
  }
  if (LoadLittle<std::uint16_t>(header, at::kHeaderLen) != want_bytes)
    return absl::DataLossError("header length field is wrong");
  if (LoadLittle<std::uint32_t>(header, crc_offset) != HeaderCrc(header, crc_offset))
    return absl::DataLossError("header checksum is wrong");
  return absl::OkStatus();
}

absl::Status CheckTag(std::span<const std::byte> header, const PairKey& key) {
  const std::uint64_t want = AuthTag(header, key);
  const std::uint64_t got = LoadLittle<std::uint64_t>(header, at::kAuthTag);
  return want == got ? absl::OkStatus() : absl::DataLossError("header auth_tag is wrong");
}

void StoreCommon(std::span<std::byte> out, std::uint32_t magic, const TransferId& id,
                 Incarnation sender, Epoch epoch, std::uint32_t chunk_seq) {
  std::fill(out.begin(), out.end(), std::byte{0});
  StoreLittle<std::uint32_t>(out, at::kMagic, magic);
  StoreLittle<std::uint8_t>(out, at::kMajor, kWireMajor);
  StoreLittle<std::uint8_t>(out, at::kMinor, kWireMinor);
  StoreLittle<std::uint16_t>(out, at::kHeaderLen, static_cast<std::uint16_t>(out.size()));
  std::memcpy(out.subspan(at::kTransferId).data(), id.bytes.data(), id.bytes.size());
  StoreLittle<std::uint64_t>(out, at::kIncarnation, static_cast<std::uint64_t>(sender));
  StoreLittle<std::uint32_t>(out, at::kEpoch, static_cast<std::uint32_t>(epoch));
  StoreLittle<std::uint32_t>(out, at::kChunkSeq, chunk_seq);
}

template <typename Header>
void LoadCommon(std::span<const std::byte> bytes, Header& header) {
  std::memcpy(header.transfer_id.bytes.data(), bytes.subspan(at::kTransferId).data(),
              header.transfer_id.bytes.size());
  header.sender_incarnation = Incarnation{LoadLittle<std::uint64_t>(bytes, at::kIncarnation)};
  header.epoch = Epoch{LoadLittle<std::uint32_t>(bytes, at::kEpoch)};
  header.chunk_seq = LoadLittle<std::uint32_t>(bytes, at::kChunkSeq);
}

}  // namespace

void EncodeChunkHeader(const ChunkHeader& header, const PairKey& key,
                       std::span<std::byte, kChunkHeaderBytes> out) {
  StoreCommon(out, kChunkMagic, header.transfer_id, header.sender_incarnation, header.epoch,
              header.chunk_seq);
  StoreLittle<std::uint32_t>(out, at::kFlags, header.flags);
  StoreLittle<std::uint32_t>(out, at::kSlot, header.slot);
  StoreLittle<std::uint16_t>(out, at::kLayerBegin, header.layer_begin);
  StoreLittle<std::uint16_t>(out, at::kLayerCount, header.layer_count);
  StoreLittle<std::uint16_t>(out, at::kHeadBegin, header.kv_head_begin);
  StoreLittle<std::uint16_t>(out, at::kHeadCount, header.kv_head_count);
  StoreLittle<std::uint32_t>(out, at::kTokenBegin, header.token_begin);
  StoreLittle<std::uint32_t>(out, at::kTokenCount, header.token_count);
  StoreLittle<std::uint16_t>(out, at::kHeadDim, header.head_dim);
  StoreLittle<std::uint16_t>(out, at::kKind, static_cast<std::uint16_t>(header.kind));
  StoreLittle<std::uint8_t>(out, at::kCheckKind, static_cast<std::uint8_t>(header.check_kind));
  StoreLittle<std::uint64_t>(out, at::kCodecHash, header.codec_hash);
  StoreLittle<std::uint64_t>(out, at::kPayloadCheck, header.payload_check);
  StoreLittle<std::uint32_t>(out, at::kPayloadLen, header.payload_bytes);
  Seal(out, at::kChunkCrc, key);
}

absl::StatusOr<ChunkHeader> ParseChunkHeader(std::span<const std::byte> bytes) {
  KVF_RETURN_IF_ERROR(CheckEnvelope(bytes, kChunkHeaderBytes, kChunkMagic, at::kChunkCrc));
  ChunkHeader header;
  LoadCommon(bytes, header);
  header.flags = LoadLittle<std::uint32_t>(bytes, at::kFlags);
  header.slot = LoadLittle<std::uint32_t>(bytes, at::kSlot);
  header.layer_begin = LoadLittle<std::uint16_t>(bytes, at::kLayerBegin);
  header.layer_count = LoadLittle<std::uint16_t>(bytes, at::kLayerCount);
  header.kv_head_begin = LoadLittle<std::uint16_t>(bytes, at::kHeadBegin);
  header.kv_head_count = LoadLittle<std::uint16_t>(bytes, at::kHeadCount);
  header.token_begin = LoadLittle<std::uint32_t>(bytes, at::kTokenBegin);
  header.token_count = LoadLittle<std::uint32_t>(bytes, at::kTokenCount);
  header.head_dim = LoadLittle<std::uint16_t>(bytes, at::kHeadDim);
  const auto kind = LoadLittle<std::uint16_t>(bytes, at::kKind);
  const auto check_kind = LoadLittle<std::uint8_t>(bytes, at::kCheckKind);
  header.codec_hash = LoadLittle<std::uint64_t>(bytes, at::kCodecHash);
  header.payload_check = LoadLittle<std::uint64_t>(bytes, at::kPayloadCheck);
  header.payload_bytes = LoadLittle<std::uint32_t>(bytes, at::kPayloadLen);
  if (kind < static_cast<std::uint16_t>(ChunkKind::kBlocks) ||
      kind > static_cast<std::uint16_t>(ChunkKind::kWindow)) {
    return absl::DataLossError(absl::StrCat("chunk kind ", kind, " is unknown"));
  }
  if (check_kind != static_cast<std::uint8_t>(CheckKind::kCrc32c)) {
    return absl::DataLossError(absl::StrCat("check kind ", int{check_kind}, " is unknown"));
  }
  if (header.flags != 0 || !AllZero(bytes.subspan(at::kZero, 3)) ||
      !AllZero(bytes.subspan(at::kChunkReserved))) {
    return absl::DataLossError("reserved bytes of the chunk header are not zero");
  }
  header.kind = static_cast<ChunkKind>(kind);
  header.check_kind = static_cast<CheckKind>(check_kind);
  return header;
}

absl::StatusOr<ChunkHeader> DecodeChunkHeader(std::span<const std::byte> bytes,
                                              const PairKey& key) {
  KVF_ASSIGN_OR_RETURN(const ChunkHeader header, ParseChunkHeader(bytes));
  KVF_RETURN_IF_ERROR(CheckTag(bytes, key));
  return header;
}

void EncodeControl(const ControlMessage& message, const PairKey& key,
                   std::span<std::byte, kControlHeaderBytes> out) {
  StoreCommon(out, kControlMagic, message.transfer_id, message.sender_incarnation, message.epoch,
              message.chunk_seq);
  StoreLittle<std::uint8_t>(out, at::kType, static_cast<std::uint8_t>(message.type));
  StoreLittle<std::uint32_t>(out, at::kChunks, message.chunks);
  StoreLittle<std::int32_t>(out, at::kFirstToken, message.first_token);
  StoreLittle<std::uint64_t>(out, at::kPayloadBytes, message.payload_bytes);
  StoreLittle<std::uint32_t>(out, at::kCause, message.cause);
  Seal(out, at::kControlCrc, key);
}

absl::StatusOr<ControlMessage> DecodeControl(std::span<const std::byte> bytes, MessageType type,
                                             const PairKey& key) {
  KVF_RETURN_IF_ERROR(CheckEnvelope(bytes, kControlHeaderBytes, kControlMagic, at::kControlCrc));
  if (LoadLittle<std::uint8_t>(bytes, at::kType) != static_cast<std::uint8_t>(type)) {
    return absl::DataLossError("control message of another type than its Active Message id");
  }
  if (LoadLittle<std::uint32_t>(bytes, at::kFlags) != 0 ||
      !AllZero(bytes.subspan(at::kType + 1, 3)) ||
      !AllZero(bytes.subspan(at::kControlReserved, at::kControlCrc - at::kControlReserved))) {
    return absl::DataLossError("reserved bytes of the control header are not zero");
  }
  KVF_RETURN_IF_ERROR(CheckTag(bytes, key));
  ControlMessage message;
  message.type = type;
  LoadCommon(bytes, message);
  message.chunks = LoadLittle<std::uint32_t>(bytes, at::kChunks);
  message.first_token = LoadLittle<std::int32_t>(bytes, at::kFirstToken);
  message.payload_bytes = LoadLittle<std::uint64_t>(bytes, at::kPayloadBytes);
  message.cause = LoadLittle<std::uint32_t>(bytes, at::kCause);
  return message;
}

}  // namespace kvferry::transport
