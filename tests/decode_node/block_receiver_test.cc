#include "decode_node/block_receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

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

constexpr PeerHandle kPeer{5};
constexpr int kTokens = 4 + 3 * 64 + 64 + 10;  // 3 blocks, 74 window tokens

class BlockReceiverTest : public ::testing::Test {
 protected:
  absl::Status Offer(const ChunkHeader& header, PeerHandle from = kPeer) {
    return receiver.OnChunk(from, header, header.payload_bytes, now, out);
  }
  absl::Status Bring(const ChunkHeader& header) {
    const absl::Status status = Offer(header);
    return status.ok() ? receiver.OnLanded(header.chunk_seq, absl::OkStatus(), now, out) : status;
  }
  absl::Status Tell(MessageType type, PeerHandle from = kPeer,
                    absl::StatusCode cause = absl::StatusCode::kOk) {
    return receiver.OnMessage(from,
                              {.type = type,
                               .transfer_id = spec.id,
                               .epoch = spec.epoch,
                               .cause = static_cast<std::uint32_t>(cause)},
                              now, out);
  }
  absl::Status Commit(std::uint32_t chunks = 3) {
    return receiver.OnMessage(kPeer, MakeCommit(spec, chunks, receiver.bytes_total()), now, out);
  }
  void Adopt() {
    for (const ChunkHeader& header : AllChunks(spec)) ASSERT_TRUE(Bring(header).ok());
    ASSERT_TRUE(Commit().ok());
    ASSERT_TRUE(receiver.adopted());
    out.clear();
  }
  void Fence() {
    ASSERT_TRUE(Bring(AllChunks(spec)[0]).ok());
    receiver.Release(absl::CancelledError("gone"), now, out);
    ASSERT_EQ(receiver.state(), ReceiverState::kFencing);
    out.clear();
  }
  std::vector<Kind> Take() {
    std::vector<Kind> kinds;
    for (const ReceiverAction& action : out) kinds.push_back(action.kind);
    out.clear();
    return kinds;
  }

  const TransferSpec spec = MakeSpec(kTokens);
  MonoTime now = absl::Seconds(100);
  const ReceiverLimits limits;
  BlockReceiver receiver{spec, limits, now};
  ReceiverActions out;
};

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

TEST_F(BlockReceiverTest, ReleaseBeforeAnythingCameFreesAtOnce) {
  receiver.Release(absl::CancelledError("gone"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kFreed));
  receiver.Release(absl::CancelledError("again"), now, out);
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_TRUE(absl::IsAborted(receiver.OnRunOpened(now, out)));
  EXPECT_TRUE(absl::IsAborted(Offer(AllChunks(spec)[0])));
  EXPECT_TRUE(absl::IsAborted(Commit()));
}

TEST_F(BlockReceiverTest, AFencedTransferWaitsForTheSender) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  Take();
  receiver.Release(absl::CancelledError("gone"), now, out);
  EXPECT_EQ(out.back().status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kSendAbort));
  EXPECT_TRUE(absl::IsAborted(Offer(AllChunks(spec)[1])));
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbort));
  EXPECT_TRUE(absl::IsAborted(Commit()));
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbort));
  EXPECT_TRUE(Tell(MessageType::kAbortAck).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFreed));
  EXPECT_TRUE(Tell(MessageType::kAbortAck).ok());  // repeated
  EXPECT_THAT(Take(), IsEmpty());
}

TEST_F(BlockReceiverTest, WhatIsLandingKeepsTheMemory) {
  EXPECT_TRUE(Offer(AllChunks(spec)[0]).ok());
  EXPECT_TRUE(receiver.Wants(0));
  receiver.Release(absl::CancelledError("gone"), now, out);
  EXPECT_FALSE(receiver.Wants(0));
  Take();
  EXPECT_TRUE(Tell(MessageType::kAbortAck).ok());
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_EQ(receiver.state(), ReceiverState::kQuarantined);
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFreed));
  EXPECT_TRUE(absl::IsFailedPrecondition(receiver.OnLanded(0, absl::OkStatus(), now, out)));
}

TEST_F(BlockReceiverTest, LandingBeforeTheAnswerDoesNotFree) {
  EXPECT_TRUE(Offer(AllChunks(spec)[0]).ok());
  receiver.Release(absl::CancelledError("gone"), now, out);
  Take();
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_EQ(receiver.state(), ReceiverState::kFencing);
}

TEST_F(BlockReceiverTest, AbortIsRepeatedAndThenTheConnectionClosed) {
  Fence();
  now += limits.abort_interval;
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbort));
  receiver.OnDeadline(now, out);  // early
  EXPECT_THAT(Take(), IsEmpty());
  now += limits.progress_limit;
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kDisconnect));
  // No timeout alone frees memory that may be written to.
  EXPECT_EQ(receiver.state(), ReceiverState::kFencing);
  EXPECT_EQ(receiver.next_deadline(), absl::InfiniteDuration());
  receiver.OnPeerLost(kPeer, absl::UnavailableError("closed"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kFreed));
}

TEST_F(BlockReceiverTest, TheSendersAbortIsObeyed) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  Take();
  EXPECT_TRUE(Tell(MessageType::kAbort, kPeer, absl::StatusCode::kInternal).ok());
  EXPECT_THAT(Take(),
              ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kSendAbortAck, Kind::kFreed));
  EXPECT_TRUE(absl::IsInternal(receiver.cause()));
}

TEST_F(BlockReceiverTest, TheSendersAbortIsAnsweredWhenNothingIsLanding) {
  EXPECT_TRUE(Offer(AllChunks(spec)[0]).ok());
  EXPECT_TRUE(Tell(MessageType::kAbort, kPeer, static_cast<absl::StatusCode>(999)).ok());
  EXPECT_EQ(receiver.cause().code(), absl::StatusCode::kUnknown);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine));
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbortAck, Kind::kFreed));
}

TEST_F(BlockReceiverTest, CrossingAbortsEnd) {
  Fence();
  EXPECT_TRUE(Tell(MessageType::kAbort).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbortAck, Kind::kFreed));
}

TEST_F(BlockReceiverTest, AnAbortBeforeAnythingElseFrees) {
  EXPECT_TRUE(Tell(MessageType::kAbort).ok());
  EXPECT_EQ(receiver.state(), ReceiverState::kFreed);
}

TEST_F(BlockReceiverTest, APeerThatIsLostFailsWhatItWasSending) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  Take();
  receiver.OnPeerLost(PeerHandle{6}, absl::UnavailableError("other"), now, out);
  EXPECT_THAT(Take(), IsEmpty());
  receiver.OnPeerLost(kPeer, absl::UnavailableError("gone"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kFreed));
  EXPECT_TRUE(absl::IsUnavailable(receiver.cause()));
}

TEST_F(BlockReceiverTest, WhatIsAdoptedOutlivesItsSender) {
  Adopt();
  receiver.OnPeerLost(kPeer, absl::UnavailableError("gone"), now, out);
  EXPECT_TRUE(Tell(MessageType::kAbort).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbortAck));
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  receiver.OnPeerLost(kPeer, absl::UnavailableError("gone"), now, out);
  EXPECT_EQ(receiver.state(), ReceiverState::kRunning);
  EXPECT_TRUE(receiver.cause().ok());
}

TEST_F(BlockReceiverTest, WhatRunsIsReleasedByTheEngine) {
  Adopt();
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  Take();
  receiver.Release(absl::CancelledError("gone"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport));
  EXPECT_EQ(receiver.state(), ReceiverState::kRunning);
  EXPECT_TRUE(receiver.OnFinished(out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFreed));
}

TEST_F(BlockReceiverTest, RunIsOpenedOnce) {
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(receiver.OnRunOpened(now, out)));
}

TEST_F(BlockReceiverTest, AReservationThatNobodyUsesEndsWithItsLease) {
  EXPECT_EQ(receiver.next_deadline(), now + limits.lease);
  now += limits.lease - absl::Milliseconds(1);
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), IsEmpty());
  now += absl::Milliseconds(1);
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kFreed));
  EXPECT_TRUE(absl::IsAborted(receiver.cause()));
  EXPECT_THAT(receiver.cause().message(), HasSubstr("Run was not opened for 30s"));
}

TEST_F(BlockReceiverTest, AnAdoptedTransferWithoutRunEndsWithItsLease) {
  Adopt();
  now += limits.lease;
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kFreed));
}

TEST_F(BlockReceiverTest, BytesMustAdvance) {
  EXPECT_TRUE(Offer(AllChunks(spec)[0]).ok());
  EXPECT_EQ(receiver.next_deadline(), now + limits.progress_limit);  // a payload lands
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_EQ(receiver.next_deadline(), now + limits.lease);  // the model computes
  EXPECT_TRUE(Commit().ok());
  EXPECT_EQ(receiver.next_deadline(), now + limits.progress_limit);  // everything is under way
  Take();
  now += limits.progress_limit;
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kSendAbort));
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

// Every event in every state: whatever the order, the end comes once, and only when nothing lands.
TEST_F(BlockReceiverTest, NoOrderOfEventsBreaksTheEnd) {
  for (std::uint32_t seed = 1; seed <= 3000; ++seed) {
    std::uint32_t random = seed * 2654435761u;
    const auto pick = [&](std::uint32_t n) {
      random = random * 1664525u + 1013904223u;
      return (random >> 16) % n;
    };
    BlockReceiver one(spec, limits, now);
    MonoTime time = now;
    int freed = 0, reported = 0, started = 0;
    const auto chunks = AllChunks(spec);
    for (int event = 0; event < 40 && freed == 0; ++event) {
      ReceiverActions actions;
      const ChunkHeader& chunk = chunks[pick(3)];
      const absl::Status outcomes[] = {absl::OkStatus(), absl::OkStatus(),
                                       absl::DataLossError("crc"), absl::UnavailableError("cut")};
      switch (pick(12)) {
        case 0:
        case 1:
        case 2:
          (void)one.OnChunk(kPeer, chunk, chunk.payload_bytes, time, actions);
          break;
        case 3:
        case 4:
        case 5:
          (void)one.OnLanded(chunk.chunk_seq, outcomes[pick(4)], time, actions);
          break;
        case 6:
          (void)one.OnMessage(kPeer, MakeCommit(spec, 3, one.bytes_total()), time, actions);
          break;
        case 7:
          (void)one.OnRunOpened(time, actions);
          break;
        case 8:
          if (pick(3) == 0) one.Release(absl::CancelledError("gone"), time, actions);
          break;
        case 9:
          (void)one.OnMessage(kPeer,
                              {.type = pick(2) == 0 ? MessageType::kAbortAck : MessageType::kAbort,
                               .transfer_id = spec.id,
                               .epoch = spec.epoch},
                              time, actions);
          break;
        case 10:
          if (pick(2) == 0) time = std::min(one.next_deadline(), time + absl::Seconds(1));
          one.OnDeadline(time, actions);
          break;
        default:
          (void)one.OnFinished(actions);
      }
      for (const ReceiverAction& action : actions) {
        EXPECT_EQ(freed, 0) << "an action after the end, seed " << seed;
        freed += action.kind == Kind::kFreed ? 1 : 0;
        reported += action.kind == Kind::kReport ? 1 : 0;
        started += action.kind == Kind::kStart ? 1 : 0;
      }
      EXPECT_TRUE(freed == 0 || one.landing() == 0) << "seed " << seed;
      EXPECT_LE(one.landing(), spec.credits);
    }
    EXPECT_LE(freed, 1) << "seed " << seed;
    EXPECT_LE(reported, 1) << "seed " << seed;
    EXPECT_LE(started, 1) << "seed " << seed;
  }
}

}  // namespace
}  // namespace kvferry::decode
