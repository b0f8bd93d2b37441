#include "transport/wire.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/coding.h"
#include "common/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace kvferry::transport {
namespace {

// Runs in the repository's root (kvferry_test). The files come from
// tests/golden/wire/make_golden.py.
std::vector<std::byte> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}
std::vector<std::byte> Golden(const std::string& name) {
  return ReadFile("tests/golden/wire/" + name + ".bin");
}

PairKey Key() {
  PairKey key;
  std::iota(key.begin(), key.end(), std::uint8_t{0});
  return key;
}

TransferId Transfer() {
  TransferId id;
  std::iota(id.bytes.begin(), id.bytes.end(), std::uint8_t{0xa0});
  return id;
}

ChunkHeader GoldenBlocks() {
  return {.transfer_id = Transfer(),
          .sender_incarnation = Incarnation{0x1122334455667788},
          .epoch = Epoch{3},
          .chunk_seq = 17,
          .slot = 2,
          .layer_begin = 4,
          .layer_count = 6,
          .kv_head_begin = 0,
          .kv_head_count = 3,
          .token_begin = 64,
          .token_count = 448,
          .head_dim = 64,
          .kind = ChunkKind::kBlocks,
          .codec_hash = 0x0123456789abcdef,
          .payload_check = 0xdeadbeef,
          .payload_bytes = 1234567};
}

std::vector<std::byte> Encode(const ChunkHeader& header) {
  std::vector<std::byte> bytes(kChunkHeaderBytes);
  EncodeChunkHeader(header, Key(), std::span<std::byte, kChunkHeaderBytes>(bytes));
  return bytes;
}
std::vector<std::byte> Encode(const ControlMessage& message) {
  std::vector<std::byte> bytes(kControlHeaderBytes);
  EncodeControl(message, Key(), std::span<std::byte, kControlHeaderBytes>(bytes));
  return bytes;
}

// After a change of a field: the checksum made right again, the tag left wrong.
void FixChunkCrc(std::vector<std::byte>& bytes) {
  std::vector<std::byte> covered(bytes.begin(), bytes.begin() + 100);
  StoreLittle<std::uint64_t>(covered, 32, 0);
  StoreLittle<std::uint32_t>(bytes, 100, Crc32c(covered));
}

TEST(ChunkHeader, EncodesToTheGoldenBytes) {
  EXPECT_EQ(Encode(GoldenBlocks()), Golden("chunk_blocks"));
  ChunkHeader window = GoldenBlocks();
  window.kind = ChunkKind::kWindow;
  window.token_begin = 8000;
  window.token_count = 127;
  window.chunk_seq = 0xffffffff;
  window.payload_bytes = 0;
  EXPECT_EQ(Encode(window), Golden("chunk_window"));
}

TEST(ChunkHeader, DecodesTheGoldenBytes) {
  const auto header = DecodeChunkHeader(Golden("chunk_blocks"), Key());
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->transfer_id, Transfer());
  EXPECT_EQ(header->sender_incarnation, Incarnation{0x1122334455667788});
  EXPECT_EQ(header->epoch, Epoch{3});
  EXPECT_EQ(header->chunk_seq, 17u);
  EXPECT_EQ(header->layer_begin, 4);
  EXPECT_EQ(header->layer_count, 6);
  EXPECT_EQ(header->kv_head_count, 3);
  EXPECT_EQ(header->token_begin, 64u);
  EXPECT_EQ(header->token_count, 448u);
  EXPECT_EQ(header->head_dim, 64);
  EXPECT_EQ(header->kind, ChunkKind::kBlocks);
  EXPECT_EQ(header->codec_hash, 0x0123456789abcdefu);
  EXPECT_EQ(header->payload_check, 0xdeadbeefu);
  EXPECT_EQ(header->payload_bytes, 1234567u);
}

TEST(ChunkHeader, EveryFlippedBitIsRefused) {
  const std::vector<std::byte> good = Golden("chunk_blocks");
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::vector<std::byte> bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(DecodeChunkHeader(bad, Key()).ok()) << "bit " << bit;
  }
}

TEST(ChunkHeader, EveryOtherLengthIsRefused) {
  std::vector<std::byte> bytes = Golden("chunk_blocks");
  bytes.resize(2 * kChunkHeaderBytes);
  for (std::size_t size = 0; size <= bytes.size(); ++size) {
    const auto header = DecodeChunkHeader(std::span(bytes).first(size), Key());
    EXPECT_EQ(header.ok(), size == kChunkHeaderBytes) << size;
  }
}

TEST(ChunkHeader, AnotherKeyIsRefusedAndParsingNeedsNone) {
  PairKey other = Key();
  other[0] ^= 1;
  const std::vector<std::byte> bytes = Golden("chunk_blocks");
  EXPECT_EQ(DecodeChunkHeader(bytes, other).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(ParseChunkHeader(bytes).ok());
}

TEST(ChunkHeader, AFieldThatOnlyTheTagProtectsIsRefused) {
  std::vector<std::byte> forged = Golden("chunk_blocks");
  StoreLittle<std::uint32_t>(forged, 40, 4);  // epoch
  FixChunkCrc(forged);
  EXPECT_TRUE(ParseChunkHeader(forged).ok());
  EXPECT_EQ(DecodeChunkHeader(forged, Key()).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ChunkHeader, AnotherMajorVersionSaysSoAndAnotherMinorIsRead) {
  std::vector<std::byte> bytes = Golden("chunk_blocks");
  StoreLittle<std::uint8_t>(bytes, 4, 2);
  const absl::Status status = ParseChunkHeader(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("wire version 2"));
  bytes = Golden("chunk_blocks");
  StoreLittle<std::uint8_t>(bytes, 5, 7);
  FixChunkCrc(bytes);
  EXPECT_TRUE(ParseChunkHeader(bytes).ok());
}

TEST(ChunkHeader, FieldsThatNoSenderWritesAreRefused) {
  const std::pair<std::size_t, std::uint8_t> cases[] = {{6, 127}, {44, 1},  {74, 0},  {74, 4},
                                                        {76, 0},  {76, 2},  {77, 1},  {79, 1},
                                                        {104, 1}, {127, 1}, {75, 255}};
  for (const auto& [offset, value] : cases) {
    std::vector<std::byte> bytes = Golden("chunk_blocks");
    StoreLittle<std::uint8_t>(bytes, offset, value);
    FixChunkCrc(bytes);
    EXPECT_EQ(ParseChunkHeader(bytes).status().code(), absl::StatusCode::kDataLoss)
        << "offset " << offset;
  }
}

TEST(ControlMessage, EncodesToTheGoldenBytes) {
  ControlMessage message{.transfer_id = Transfer(),
                         .sender_incarnation = Incarnation{0x1122334455667788},
                         .epoch = Epoch{3}};
  message.type = MessageType::kAdopted;
  EXPECT_EQ(Encode(message), Golden("control_adopted"));
  message.type = MessageType::kAbortAck;
  EXPECT_EQ(Encode(message), Golden("control_abort_ack"));
  message.type = MessageType::kAbort;
  message.cause = 1;
  EXPECT_EQ(Encode(message), Golden("control_abort"));
  message.type = MessageType::kNack;
  message.chunk_seq = 18;
  message.cause = 15;
  EXPECT_EQ(Encode(message), Golden("control_nack"));
  message.type = MessageType::kAck;
  message.chunk_seq = 17;
  message.cause = 0;
  EXPECT_EQ(Encode(message), Golden("control_ack"));
  message.type = MessageType::kCommit;
  message.chunk_seq = 0;
  message.chunks = 99;
  message.first_token = 4711;
  message.payload_bytes = 0x123456789a;
  EXPECT_EQ(Encode(message), Golden("control_commit"));
}

TEST(ControlMessage, DecodesTheGoldenBytesAsTheirTypeOnly) {
  const std::vector<std::byte> bytes = Golden("control_commit");
  const auto message = DecodeControl(bytes, MessageType::kCommit, Key());
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->chunks, 99u);
  EXPECT_EQ(message->first_token, 4711);
  EXPECT_EQ(message->payload_bytes, 0x123456789au);
  EXPECT_FALSE(DecodeControl(bytes, MessageType::kAbort, Key()).ok());
  EXPECT_FALSE(DecodeControl(Golden("chunk_blocks"), MessageType::kCommit, Key()).ok());
}

TEST(ControlMessage, EveryFlippedBitIsRefused) {
  const std::vector<std::byte> good = Golden("control_commit");
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::vector<std::byte> bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(DecodeControl(bad, MessageType::kCommit, Key()).ok()) << "bit " << bit;
  }
}

// The seeds of the fuzzer, and random edits of them.
TEST(ChunkHeaderFuzz, TheCorpusReplays) {
  int files = 0;
  std::mt19937 random(1);
  for (const auto& entry : std::filesystem::directory_iterator("tests/fuzz/corpus/chunk_header")) {
    std::vector<std::byte> bytes = ReadFile(entry.path());
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    ++files;
    for (int i = 0; i < 200 && !bytes.empty(); ++i) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    }
  }
  EXPECT_GE(files, 15);
}

}  // namespace
}  // namespace kvferry::transport
