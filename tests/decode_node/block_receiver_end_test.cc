#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "decode_node/block_receiver.h"
#include "tests/decode_node/block_receiver_fixture.h"
#include "tests/decode_node/transfer_builder.h"

namespace kvferry::decode {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using transport::ChunkHeader;
using transport::MessageType;
using transport::PeerHandle;
using Kind = ReceiverAction::Kind;

// How a transfer ends: by release, abort, a lost peer, the engine or a lease, and when its memory
// is free.
class BlockReceiverEndTest : public BlockReceiverFixture {
 protected:
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
};

TEST_F(BlockReceiverEndTest, ReleaseBeforeAnythingCameFreesAtOnce) {
  receiver.Release(absl::CancelledError("gone"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kFreed));
  receiver.Release(absl::CancelledError("again"), now, out);
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_TRUE(absl::IsAborted(receiver.OnRunOpened(now, out)));
  EXPECT_TRUE(absl::IsAborted(Offer(AllChunks(spec)[0])));
  EXPECT_TRUE(absl::IsAborted(Commit()));
}

TEST_F(BlockReceiverEndTest, AFencedTransferWaitsForTheSender) {
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

TEST_F(BlockReceiverEndTest, WhatIsLandingKeepsTheMemory) {
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

TEST_F(BlockReceiverEndTest, LandingBeforeTheAnswerDoesNotFree) {
  EXPECT_TRUE(Offer(AllChunks(spec)[0]).ok());
  receiver.Release(absl::CancelledError("gone"), now, out);
  Take();
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_EQ(receiver.state(), ReceiverState::kFencing);
}

TEST_F(BlockReceiverEndTest, AbortIsRepeatedAndThenTheConnectionClosed) {
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

TEST_F(BlockReceiverEndTest, TheSendersAbortIsObeyed) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  Take();
  EXPECT_TRUE(Tell(MessageType::kAbort, kPeer, absl::StatusCode::kInternal).ok());
  EXPECT_THAT(Take(),
              ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kSendAbortAck, Kind::kFreed));
  EXPECT_TRUE(absl::IsInternal(receiver.cause()));
}

TEST_F(BlockReceiverEndTest, TheSendersAbortIsAnsweredWhenNothingIsLanding) {
  EXPECT_TRUE(Offer(AllChunks(spec)[0]).ok());
  EXPECT_TRUE(Tell(MessageType::kAbort, kPeer, static_cast<absl::StatusCode>(999)).ok());
  EXPECT_EQ(receiver.cause().code(), absl::StatusCode::kUnknown);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine));
  EXPECT_TRUE(receiver.OnLanded(0, absl::OkStatus(), now, out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbortAck, Kind::kFreed));
}

TEST_F(BlockReceiverEndTest, CrossingAbortsEnd) {
  Fence();
  EXPECT_TRUE(Tell(MessageType::kAbort).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbortAck, Kind::kFreed));
}

TEST_F(BlockReceiverEndTest, AnAbortBeforeAnythingElseFrees) {
  EXPECT_TRUE(Tell(MessageType::kAbort).ok());
  EXPECT_EQ(receiver.state(), ReceiverState::kFreed);
}

TEST_F(BlockReceiverEndTest, APeerThatIsLostFailsWhatItWasSending) {
  EXPECT_TRUE(Bring(AllChunks(spec)[0]).ok());
  Take();
  receiver.OnPeerLost(PeerHandle{6}, absl::UnavailableError("other"), now, out);
  EXPECT_THAT(Take(), IsEmpty());
  receiver.OnPeerLost(kPeer, absl::UnavailableError("gone"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kQuarantine, Kind::kFreed));
  EXPECT_TRUE(absl::IsUnavailable(receiver.cause()));
}

TEST_F(BlockReceiverEndTest, WhatIsAdoptedOutlivesItsSender) {
  Adopt();
  receiver.OnPeerLost(kPeer, absl::UnavailableError("gone"), now, out);
  EXPECT_TRUE(Tell(MessageType::kAbort).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kSendAbortAck));
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  receiver.OnPeerLost(kPeer, absl::UnavailableError("gone"), now, out);
  EXPECT_EQ(receiver.state(), ReceiverState::kRunning);
  EXPECT_TRUE(receiver.cause().ok());
}

TEST_F(BlockReceiverEndTest, WhatRunsIsReleasedByTheEngine) {
  Adopt();
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  Take();
  receiver.Release(absl::CancelledError("gone"), now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport));
  EXPECT_EQ(receiver.state(), ReceiverState::kRunning);
  EXPECT_TRUE(receiver.OnFinished(out).ok());
  EXPECT_THAT(Take(), ElementsAre(Kind::kFreed));
}

TEST_F(BlockReceiverEndTest, RunIsOpenedOnce) {
  EXPECT_TRUE(receiver.OnRunOpened(now, out).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(receiver.OnRunOpened(now, out)));
}

TEST_F(BlockReceiverEndTest, AReservationThatNobodyUsesEndsWithItsLease) {
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

TEST_F(BlockReceiverEndTest, AnAdoptedTransferWithoutRunEndsWithItsLease) {
  Adopt();
  now += limits.lease;
  receiver.OnDeadline(now, out);
  EXPECT_THAT(Take(), ElementsAre(Kind::kReport, Kind::kFreed));
}

TEST_F(BlockReceiverEndTest, BytesMustAdvance) {
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

// Every event in every state: whatever the order, the end comes once, and only when nothing lands.
TEST_F(BlockReceiverEndTest, NoOrderOfEventsBreaksTheEnd) {
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
