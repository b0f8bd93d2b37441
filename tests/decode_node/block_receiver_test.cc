#include "decode_node/block_receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "tests/decode_node/block_receiver_fixture.h"
#include "tests/decode_node/transfer_builder.h"

namespace kvferry::decode {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using transport::ChunkHeader;
using transport::ChunkKind;
using transport::ControlMessage;
using transport::MessageType;
using transport::PeerHandle;
using Kind = ReceiverAction::Kind;

class BlockReceiverTest : public BlockReceiverFixture {};

TEST_F(BlockReceiverTest, AdoptsAWholeTransfer) {
  EXPECT_EQ(receiver.state(), ReceiverState::kReserved);
  const auto chunks = AllChunks(spec);
  EXPECT_TRUE(Offer(chunks[0]).ok());
  EXPECT_EQ(receiver.state(), ReceiverState::kReceiving);
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFill, Kind::kSendAck));
  EXPECT_TRUE(Bring(chunks[1]).ok());
  EXPECT_TRUE(Bring(chunks[2]).ok());
  Take();
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_TRUE(Commit().ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kPublish, Kind::kSendAdopted, Kind::kStart));
  EXPECT_EQ(receiver.state(), ReceiverState::kRunning);
  EXPECT_EQ(receiver.first_token(), 7);
  EXPECT_EQ(receiver.bytes_done(), receiver.bytes_total());
  EXPECT_EQ(receiver.next_deadline(), absl::InfiniteDuration());
  EXPECT_TRUE(receiver.OnFinished(out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFreed));
  EXPECT_EQ(receiver.state(), ReceiverState::kFreed);
  EXPECT_TRUE(absl::IsFailedPrecondition(receiver.OnFinished(out)));
}

TEST_F(BlockReceiverTest, CommitMayOvertakeChunks) {
  EXPECT_TRUE(Commit().ok());
  EXPECT_EQ(receiver.state(), ReceiverState::kVerifying);
  const auto chunks = AllChunks(spec);
  EXPECT_TRUE(Bring(chunks[2]).ok());
  EXPECT_TRUE(Bring(chunks[0]).ok());
  EXPECT_FALSE(receiver.adopted());
  Take();
  EXPECT_TRUE(Bring(chunks[1]).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFill, Kind::kSendAck, Kind::kPublish, Kind::kSendAdopted));
  EXPECT_EQ(receiver.state(), ReceiverState::kAdopted);
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kStart));
}

TEST_F(BlockReceiverTest, CommitIsIdempotent) {
  EXPECT_TRUE(Commit().ok());
  EXPECT_TRUE(Commit().ok());
  EXPECT_THAT(Take(), IsEmpty());
  ControlMessage other = MakeCommit(spec, 3, receiver.bytes_total());
  other.first_token = 8;
  EXPECT_TRUE(absl::IsInvalidArgument(receiver.OnMessage(kPeer, other, now, out)));
  for (const ChunkHeader& header : AllChunks(spec)) EXPECT_TRUE(Bring(header).ok());
  Take();
  EXPECT_TRUE(Commit().ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAdopted));
}

TEST_F(BlockReceiverTest, HostileHeadersAreRefusedAndChangeNothing) {
  const ChunkHeader good = MakeChunk(spec, ChunkKind::kBlocks, 1);
  constexpr auto kMax16 = std::numeric_limits<std::uint16_t>::max();
  constexpr auto kMax32 = std::numeric_limits<std::uint32_t>::max();
  const std::vector<std::pair<std::string, std::function<void(ChunkHeader&)>>> cases = {
      {"transfer", [](ChunkHeader& h) { h.transfer_id.bytes[0] = 9; }},
      {"epoch", [](ChunkHeader& h) { h.epoch = Epoch{1}; }},
      {"future epoch", [](ChunkHeader& h) { h.epoch = Epoch{3}; }},
      {"flags", [](ChunkHeader& h) { h.flags = 1; }},
      {"codec", [](ChunkHeader& h) { ++h.codec_hash; }},
      {"head_dim", [](ChunkHeader& h) { h.head_dim = 128; }},
      {"head begin", [](ChunkHeader& h) { h.kv_head_begin = 1; }},
      {"head count", [](ChunkHeader& h) { h.kv_head_count = 1; }},
      {"no layers", [](ChunkHeader& h) { h.layer_count = 0; }},
      {"layer begin", [](ChunkHeader& h) { h.layer_begin = 3; }},
      {"layer count", [](ChunkHeader& h) { h.layer_count = 4; }},
      {"layers wrap", [](ChunkHeader& h) { h.layer_begin = 2, h.layer_count = kMax16; }},
      {"layer begin max", [](ChunkHeader& h) { h.layer_begin = kMax16; }},
      {"before the blocks", [](ChunkHeader& h) { h.token_begin = 0; }},
      {"unaligned begin", [](ChunkHeader& h) { h.token_begin += 1; }},
      {"unaligned count", [](ChunkHeader& h) { h.token_count -= 1; }},
      {"no tokens", [](ChunkHeader& h) { h.token_count = 0; }},
      {"beyond the blocks", [](ChunkHeader& h) { h.token_begin += 64; }},
      {"tokens wrap", [](ChunkHeader& h) { h.token_count = kMax32 - 63; }},
      {"begin wraps", [](ChunkHeader& h) { h.token_begin = kMax32 - 59; }},
      {"payload announced", [](ChunkHeader& h) { h.payload_bytes -= 1; }},
      {"seq", [](ChunkHeader& h) { h.chunk_seq = kMax32; }},
      {"kind", [](ChunkHeader& h) { h.kind = static_cast<ChunkKind>(77); }},
      {"sinks with tokens of blocks", [](ChunkHeader& h) { h.kind = ChunkKind::kSinks; }},
      {"window with tokens of blocks", [](ChunkHeader& h) { h.kind = ChunkKind::kWindow; }},
  };
  for (const auto& [name, spoil] : cases) {
    ChunkHeader header = good;
    spoil(header);
    EXPECT_TRUE(
        absl::IsInvalidArgument(receiver.OnChunk(kPeer, header, good.payload_bytes, now, out)))
        << name;
    EXPECT_EQ(receiver.landing(), 0u) << name;
    EXPECT_THAT(out, IsEmpty()) << name;
    EXPECT_EQ(receiver.state(), ReceiverState::kReserved) << name;
  }
  EXPECT_TRUE(
      absl::IsInvalidArgument(receiver.OnChunk(kPeer, good, good.payload_bytes - 1, now, out)));
  EXPECT_TRUE(Bring(good).ok());
}

TEST_F(BlockReceiverTest, APayloadBeyondTheSlotIsRefused) {
  TransferSpec small = spec;
  small.slot_bytes = 4096;
  BlockReceiver tight(small, limits, now);
  const ChunkHeader header = MakeChunk(small, ChunkKind::kBlocks, 0);
  EXPECT_THAT(tight.OnChunk(kPeer, header, header.payload_bytes, now, out).message(),
              HasSubstr("a slot holds 4096"));
}

TEST_F(BlockReceiverTest, DuplicatesAreAcknowledgedAgainAndDropped) {
  const ChunkHeader header = AllChunks(spec)[0];
  EXPECT_TRUE(Offer(header).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(Offer(header)));  // while the first one is landing
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  Take();
  EXPECT_TRUE(absl::IsAlreadyExists(Offer(header)));
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAck));
  EXPECT_EQ(receiver.bytes_done(), header.payload_bytes);
  ChunkHeader other = header;
  other.payload_check = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(Offer(other)));
}

TEST_F(BlockReceiverTest, ABlockIsCoveredOnce) {
  ChunkHeader blocks = AllChunks(spec)[1];
  EXPECT_TRUE(Offer(blocks).ok());
  ChunkHeader overlap = blocks;
  overlap.chunk_seq = 2;
  overlap.layer_begin = 2;
  overlap.layer_count = 1;
  overlap.token_begin += 64;
  overlap.token_count = 64;
  overlap.payload_bytes = spec.page_bytes[2];
  EXPECT_THAT(Offer(overlap).message(), HasSubstr("another chunk has brought some"));
  // When the first one never comes, another may.
  EXPECT_TRUE(receiver.OnLanded(1, absl::UnavailableError("cut"), now, out).ok());
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_TRUE(Bring(overlap).ok());
}

TEST_F(BlockReceiverTest, BadChunksAreAskedForThreeTimes) {
  const ChunkHeader header = AllChunks(spec)[0];
  const absl::Status bad = absl::DataLossError("crc");
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Offer(header).ok());
    EXPECT_TRUE(receiver.OnLanded(0, bad, now, out).ok());
    EXPECT_THAT(Take(), ElementsAre(Kind::kSendNack));
  }
  EXPECT_TRUE(Offer(header).ok());
  EXPECT_TRUE(receiver.OnLanded(0, bad, now, out).ok());
  EXPECT_EQ(receiver.bad_chunks(), 4u);
  EXPECT_TRUE(absl::IsDataLoss(receiver.cause()));
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kSendAbort));
}

TEST_F(BlockReceiverTest, AGoodCopyAfterABadOneIsAdopted) {
  const ChunkHeader header = AllChunks(spec)[0];
  EXPECT_TRUE(Offer(header).ok());
  EXPECT_TRUE(receiver.OnLanded(0, absl::DataLossError("crc"), now, out).ok());
  Take();
  EXPECT_TRUE(Bring(header).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFill, Kind::kSendAck));
}

TEST_F(BlockReceiverTest, NoMoreThanItsCreditsLandAtOnce) {
  BlockReceiver narrow(MakeSpec(kTokens, 2), limits, now);
  const auto chunks = AllChunks(spec);
  for (int i : {0, 1}) {
    EXPECT_TRUE(narrow.OnChunk(kPeer, chunks[i], chunks[i].payload_bytes, now, out).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      narrow.OnChunk(kPeer, chunks[2], chunks[2].payload_bytes, now, out)));
  EXPECT_TRUE(narrow.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_TRUE(narrow.OnChunk(kPeer, chunks[2], chunks[2].payload_bytes, now, out).ok());
}

TEST_F(BlockReceiverTest, AnotherSenderIsNotHeard) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Offer(AllChunks(spec)[1], PeerHandle{6})));
  EXPECT_TRUE(absl::IsInvalidArgument(Tell(MessageType::kAbort, PeerHandle{6})));
  EXPECT_TRUE(receiver.cause().ok());
}

TEST_F(BlockReceiverTest, ACommitThatDoesNotAddUpFails) {
  const auto fails = [&](const ControlMessage& commit) {
    BlockReceiver fresh(spec, limits, now);
    ReceiverActions actions;
    EXPECT_TRUE(fresh.OnMessage(kPeer, commit, now, actions).ok());
    return absl::IsDataLoss(fresh.cause());
  };
  const std::uint64_t bytes = receiver.bytes_total();
  EXPECT_TRUE(fails(MakeCommit(spec, 3, bytes - 1)));
  EXPECT_TRUE(fails(MakeCommit(spec, 1000, bytes)));
  ControlMessage commit = MakeCommit(spec, 3, bytes);
  EXPECT_FALSE(fails(commit));
  commit.first_token = 1000;
  EXPECT_TRUE(fails(commit));
  commit.first_token = -1;
  EXPECT_TRUE(fails(commit));
  // Fewer chunks than were seen.
  EXPECT_TRUE(Bring(AllChunks(spec)[2]).ok());
  EXPECT_TRUE(Commit(2).ok());
  EXPECT_TRUE(absl::IsDataLoss(receiver.cause()));
}

TEST_F(BlockReceiverTest, AllChunksHereWithoutAllPagesFails) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  EXPECT_TRUE(Commit(1).ok());
  EXPECT_TRUE(absl::IsDataLoss(receiver.cause()));
}

TEST_F(BlockReceiverTest, NothingFurtherThanCommitSaysIsAccepted) {
  EXPECT_TRUE(Commit(3).ok());
  ChunkHeader header = AllChunks(spec)[2];
  header.chunk_seq = 3;
  EXPECT_TRUE(absl::IsInvalidArgument(Offer(header)));
}

TEST_F(BlockReceiverTest, AShortPromptHasNoBlocks) {
  const TransferSpec tiny = MakeSpec(2);  // fewer tokens than sinks
  BlockReceiver short_one(tiny, limits, now);
  const ChunkHeader sinks = MakeChunk(tiny, ChunkKind::kSinks, 0);
  for (const ChunkKind kind : {ChunkKind::kBlocks, ChunkKind::kWindow}) {
    const ChunkHeader header = MakeChunk(tiny, kind, 0);
    EXPECT_FALSE(short_one.OnChunk(kPeer, header, header.payload_bytes, now, out).ok());
  }
  EXPECT_TRUE(short_one.OnChunk(kPeer, sinks, sinks.payload_bytes, now, out).ok());
  EXPECT_TRUE(short_one.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_TRUE(
      short_one.OnMessage(kPeer, MakeCommit(tiny, 1, short_one.bytes_total()), now, out).ok());
  EXPECT_TRUE(short_one.adopted());
}

TEST_F(BlockReceiverTest, MessagesThatASenderDoesNotSendAreRefused) {
  for (const MessageType type : {MessageType::kAck, MessageType::kNack, MessageType::kAdopted,
                                 MessageType::kHeartbeat, MessageType::kAbortAck}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Tell(type)));
  }
  EXPECT_EQ(receiver.state(), ReceiverState::kReserved);
}

}  // namespace
}  // namespace kvferry::decode
