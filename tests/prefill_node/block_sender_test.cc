#include "prefill_node/block_sender.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/prefill_node/sender_harness.h"

namespace kvferry::prefill {
namespace {

using transport::ControlMessage;
using transport::MessageType;

SenderHarness Sending(int chunks, std::uint32_t credits = 2) {
  SenderHarness h(credits);
  EXPECT_TRUE(h.Grant().ok());
  for (int i = 0; i < chunks; ++i) EXPECT_TRUE(h.Add().ok());
  return h;
}

TEST(BlockSender, GoesThroughAllStatesOfASuccess) {
  SenderHarness h(2);
  EXPECT_EQ(h.sender.state(), SenderState::kOffered);
  ASSERT_TRUE(h.Grant().ok());
  EXPECT_EQ(h.sender.state(), SenderState::kGranted);
  ASSERT_TRUE(h.Add().ok());
  ASSERT_TRUE(h.Add().ok());
  EXPECT_EQ(h.sender.state(), SenderState::kSending);
  EXPECT_EQ(h.Take(), "chunk 0, chunk 1");
  ASSERT_TRUE(h.Commit().ok());
  EXPECT_EQ(h.sender.state(), SenderState::kCommitted);
  EXPECT_EQ(h.Take(), "commit");
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Ack(0).ok());
  EXPECT_EQ(h.Take(), "free 0");
  ASSERT_TRUE(h.Ack(1).ok());
  EXPECT_EQ(h.Take(), "") << "acknowledged, but the send still reads the slot";
  ASSERT_TRUE(h.Message(MessageType::kAdopted).ok());
  EXPECT_EQ(h.sender.state(), SenderState::kRetained);
  EXPECT_EQ(h.Take(), "report ok");
  ASSERT_TRUE(h.Done(1).ok());
  EXPECT_EQ(h.sender.state(), SenderState::kReleased);
  EXPECT_EQ(h.Take(), "free 1, closed");
  EXPECT_EQ(h.sender.chunks(), 2u);
  EXPECT_EQ(h.sender.payload_bytes(), 2 * kBytes);
  EXPECT_EQ(h.sender.acked_bytes(), 2 * kBytes);
  EXPECT_EQ(h.sender.first_token(), 42);
}

TEST(BlockSender, KeepsWithinCreditsAndCommitsAfterTheLastPost) {
  SenderHarness h = Sending(4);
  ASSERT_TRUE(h.Commit().ok());
  EXPECT_EQ(h.Take(), "chunk 0, chunk 1");
  EXPECT_EQ(h.sender.chunks(), 4u);
  EXPECT_EQ(h.sender.posted_chunks(), 2u);
  EXPECT_EQ(h.sender.posted_bytes(), 2 * kBytes);
  ASSERT_TRUE(h.Done(0).ok());
  EXPECT_EQ(h.Take(), "") << "a completed send gives no credit";
  ASSERT_TRUE(h.Ack(0).ok());
  EXPECT_EQ(h.Take(), "free 0, chunk 2");
  ASSERT_TRUE(h.Ack(1).ok());
  EXPECT_EQ(h.Take(), "chunk 3, commit");
  h.Drain();
}

TEST(BlockSender, NackResendsAfterTheRunningSend) {
  SenderHarness h = Sending(1);
  h.Take();
  ASSERT_TRUE(h.Nack(0).ok());
  EXPECT_EQ(h.Take(), "");
  ASSERT_TRUE(h.Done(0).ok());
  EXPECT_EQ(h.Take(), "chunk 0");
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Nack(0).ok());
  EXPECT_EQ(h.Take(), "chunk 0");
  EXPECT_EQ(h.sender.resent_chunks(), 2u);
  h.Drain();
}

TEST(BlockSender, FourthBadCheckIsDataLoss) {
  SenderHarness h = Sending(2);
  for (int resend = 0; resend < 3; ++resend) {
    ASSERT_TRUE(h.Done(0).ok());
    ASSERT_TRUE(h.Nack(0).ok());
  }
  ASSERT_TRUE(h.Done(0).ok());
  h.Take();
  ASSERT_TRUE(h.Nack(0).ok());
  EXPECT_EQ(h.Take(), "free 0, report failure");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(h.sender.state(), SenderState::kAborting);
  ASSERT_TRUE(h.Done(1).ok());
  EXPECT_EQ(h.Take(), "free 1, abort");
  ASSERT_TRUE(h.Message(MessageType::kAbortAck).ok());
  EXPECT_EQ(h.Take(), "closed");
  EXPECT_EQ(h.sender.state(), SenderState::kAborted);
}

TEST(BlockSender, ACauseThatIsNoCodeIsUnknown) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Message(MessageType::kAbort, 0, static_cast<absl::StatusCode>(12345)).ok());
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kUnknown);
  h.Drain();
}

TEST(BlockSender, SilenceResendsWithDoublingDeadlinesThenFails) {
  SenderHarness h = Sending(1);
  const MonoTime start = h.now;
  EXPECT_EQ(h.sender.next_deadline(), start + absl::Seconds(10)) << "the send itself has no limit";
  ASSERT_TRUE(h.Done(0).ok());
  h.Take();
  absl::Duration expected = absl::ZeroDuration();
  for (int resend = 0; resend < 3; ++resend) {
    expected += absl::Seconds(1 << resend);
    ASSERT_TRUE(h.Expire());
    EXPECT_EQ(h.now - start, expected);
    EXPECT_EQ(h.Take(), "chunk 0");
    ASSERT_TRUE(h.Done(0).ok());
  }
  ASSERT_TRUE(h.Expire());
  EXPECT_EQ(h.Take(), "free 0, report failure, abort");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kUnavailable);
  h.Drain();
}

TEST(BlockSender, EarlyDeadlineCallDoesNothing) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  h.Take();
  SenderActions out;
  h.sender.OnDeadline(h.now, out);
  EXPECT_TRUE(out.empty());
  h.Drain();
}

TEST(BlockSender, CommitIsRepeatedOnlyWhenAllIsAcknowledged) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Commit().ok());
  h.Take();
  EXPECT_EQ(h.sender.next_deadline(), h.now + absl::Seconds(10));
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Ack(0).ok());
  EXPECT_EQ(h.Take(), "free 0");
  for (int repeat = 0; repeat < 3; ++repeat) {
    const MonoTime before = h.now;
    ASSERT_TRUE(h.Expire());
    EXPECT_EQ(h.now - before, absl::Seconds(1 << repeat));
    EXPECT_EQ(h.Take(), "commit");
  }
  ASSERT_TRUE(h.Expire());
  EXPECT_EQ(h.Take(), "report failure, abort") << "no progress for 10 s";
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kUnavailable);
  h.Drain();
}

TEST(BlockSender, NoDeadlineWhileTheModelComputes) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Ack(0).ok());
  EXPECT_EQ(h.sender.next_deadline(), absl::InfiniteDuration());
  h.Drain();
}

TEST(BlockSender, AdoptedImpliesLostAcks) {
  SenderHarness h = Sending(2);
  ASSERT_TRUE(h.Commit().ok());
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Done(1).ok());
  h.Take();
  ASSERT_TRUE(h.Message(MessageType::kAdopted).ok());
  EXPECT_EQ(h.Take(), "free 0, free 1, report ok, closed");
  EXPECT_EQ(h.sender.acked_bytes(), 2 * kBytes);
}

TEST(BlockSender, LateMessagesOfARetainedTransferChangeNothing) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Commit().ok());
  ASSERT_TRUE(h.Message(MessageType::kAdopted).ok());
  h.Take();
  ASSERT_TRUE(h.Ack(0).ok());
  ASSERT_TRUE(h.Nack(0).ok());
  ASSERT_TRUE(h.Message(MessageType::kAdopted).ok());
  h.Abort();
  h.PeerLost();
  EXPECT_EQ(h.sender.outstanding(), 0u);
  EXPECT_EQ(h.Take(), "");
  ASSERT_TRUE(h.Done(0, absl::UnavailableError("gone")).ok());
  EXPECT_EQ(h.Take(), "free 0, closed");
  EXPECT_TRUE(h.reports[0].ok());
}

TEST(BlockSender, ReceiverAbortIsAnsweredAfterOwnSends) {
  SenderHarness h = Sending(3);
  h.Take();
  ASSERT_TRUE(h.Message(MessageType::kAbort, 0, absl::StatusCode::kResourceExhausted).ok());
  EXPECT_EQ(h.Take(), "free 2, report failure");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(h.Done(1).ok());
  EXPECT_EQ(h.Take(), "free 1");
  ASSERT_TRUE(h.Done(0).ok());
  EXPECT_EQ(h.Take(), "free 0, abort_ack, closed");
  ASSERT_TRUE(h.Message(MessageType::kAbort).ok());
  EXPECT_EQ(h.Take(), "abort_ack") << "idempotent";
}

TEST(BlockSender, AbortIsRepeatedAndEndsWithoutAnswer) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  h.Take();
  h.Abort();
  EXPECT_EQ(h.Take(), "free 0, report failure, abort");
  h.Abort();
  EXPECT_EQ(h.Take(), "");
  for (int repeat = 0; repeat < 3; ++repeat) {
    ASSERT_TRUE(h.Expire());
    EXPECT_EQ(h.Take(), "abort");
  }
  ASSERT_TRUE(h.Expire());
  EXPECT_EQ(h.Take(), "closed");
}

TEST(BlockSender, StuckSendsEndByClosingTheConnection) {
  SenderHarness h = Sending(1);
  h.Take();
  h.Abort();
  EXPECT_EQ(h.Take(), "report failure");
  ASSERT_TRUE(h.Expire());
  EXPECT_EQ(h.Take(), "disconnect");
  EXPECT_EQ(h.sender.state(), SenderState::kAborting) << "time alone frees nothing";
  EXPECT_EQ(h.sender.next_deadline(), absl::InfiniteDuration());
  h.PeerLost();
  EXPECT_EQ(h.Take(), "");
  ASSERT_TRUE(h.Done(0, absl::CancelledError("closed")).ok());
  EXPECT_EQ(h.Take(), "free 0, closed");
}

TEST(BlockSender, CrossingAborts) {
  SenderHarness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  h.Abort();
  h.Take();
  ASSERT_TRUE(h.Message(MessageType::kAbort).ok());
  EXPECT_EQ(h.Take(), "abort_ack, closed");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kCancelled) << "the first cause stands";
}

TEST(BlockSender, OfferedTransferAbortsSilently) {
  SenderHarness h;
  h.Abort();
  EXPECT_EQ(h.Take(), "report failure, closed");
}

TEST(BlockSender, FailedSendFailsTheTransfer) {
  SenderHarness h = Sending(1);
  h.Take();
  ASSERT_TRUE(h.Done(0, absl::UnavailableError("broken pipe")).ok());
  EXPECT_EQ(h.Take(), "free 0, report failure, abort");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kUnavailable);
  h.PeerLost();
  EXPECT_EQ(h.Take(), "closed");
}

TEST(BlockSender, IllegalEventsChangeNothing) {
  SenderHarness h(2);
  EXPECT_EQ(h.Add().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.Commit().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.sender.Grant(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Ack(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Nack(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Message(MessageType::kAdopted).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Message(MessageType::kAbortAck).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Message(MessageType::kCommit).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Message(MessageType::kHeartbeat).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.sender.state(), SenderState::kOffered);

  ASSERT_TRUE(h.Grant().ok());
  EXPECT_EQ(h.Grant().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.Commit().code(), absl::StatusCode::kFailedPrecondition) << "nothing was sent";
  EXPECT_EQ(h.Message(MessageType::kAdopted).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.sender.state(), SenderState::kGranted);

  for (int i = 0; i < 3; ++i) ASSERT_TRUE(h.Add().ok());
  EXPECT_EQ(h.Ack(2).code(), absl::StatusCode::kInvalidArgument) << "not sent yet";
  EXPECT_EQ(h.Nack(2).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Ack(3).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.Done(2).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.Message(MessageType::kAdopted).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.sender.state(), SenderState::kSending);

  ASSERT_TRUE(h.Commit().ok());
  EXPECT_EQ(h.Commit().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.Add().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(h.Message(MessageType::kAdopted).code(), absl::StatusCode::kInvalidArgument)
      << "a chunk waits for its credit";
  EXPECT_EQ(h.sender.state(), SenderState::kSending);
  h.Drain();
  EXPECT_EQ(h.Add(), h.sender.cause());
  EXPECT_EQ(h.Commit(), h.sender.cause());
}

TEST(BlockSender, OtherEpochsAndTransfersAreRefused) {
  SenderHarness h = Sending(1);
  SenderActions out;
  ControlMessage message{
      .type = MessageType::kAbort, .transfer_id = TestId(), .epoch = Epoch{2}, .cause = 1};
  EXPECT_EQ(h.sender.OnMessage(message, h.now, out).code(), absl::StatusCode::kInvalidArgument);
  message.epoch = Epoch{1};
  message.transfer_id.bytes[3] = 1;
  EXPECT_EQ(h.sender.OnMessage(message, h.now, out).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(out.empty());
  EXPECT_EQ(h.sender.state(), SenderState::kSending);
  h.Drain();
}

}  // namespace
}  // namespace kvferry::prefill
