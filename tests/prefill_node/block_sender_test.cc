#include "prefill_node/block_sender.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace kvferry::prefill {
namespace {

using Kind = SenderAction::Kind;
using transport::ControlMessage;
using transport::MessageType;

constexpr std::uint32_t kBytes = 1000;

TransferId TestId() {
  TransferId id;
  id.bytes[0] = 7;
  return id;
}

// A sender with its shell's bookkeeping: every action is checked against the promises of the class
// as it comes out.
class Harness {
 public:
  explicit Harness(std::uint32_t credits = 2, SenderLimits limits = {})
      : sender(TestId(), Epoch{1}, limits), credits_(credits), limits_(limits) {}

  absl::Status Grant() { return sender.Grant(credits_); }
  absl::Status Add() {
    auto seq = sender.AddChunk(kBytes, now, actions_);
    if (seq.ok()) held.insert(*seq);
    Check();
    return seq.status();
  }
  absl::Status Commit() {
    absl::Status status = sender.Commit(42, now, actions_);
    Check();
    return status;
  }
  void Abort(absl::Status why = absl::CancelledError("stop")) {
    sender.Abort(why, now, actions_);
    Check();
  }
  absl::Status Done(std::uint32_t seq, absl::Status status = absl::OkStatus()) {
    const bool was_sending = sending.erase(seq) > 0;
    absl::Status result = sender.OnSendDone(seq, status, now, actions_);
    EXPECT_EQ(result.ok(), was_sending) << result;
    Check();
    return result;
  }
  absl::Status Message(MessageType type, std::uint32_t seq = 0,
                       absl::StatusCode cause = absl::StatusCode::kDataLoss) {
    absl::Status status = sender.OnMessage({.type = type,
                                            .transfer_id = TestId(),
                                            .epoch = Epoch{1},
                                            .chunk_seq = seq,
                                            .cause = static_cast<std::uint32_t>(cause)},
                                           now, actions_);
    Check();
    return status;
  }
  absl::Status Ack(std::uint32_t seq) { return Message(MessageType::kAck, seq); }
  absl::Status Nack(std::uint32_t seq) { return Message(MessageType::kNack, seq); }
  void PeerLost() {
    sender.OnPeerLost(absl::UnavailableError("reset"), now, actions_);
    Check();
  }
  // To the next deadline, if there is one.
  bool Expire() {
    if (sender.next_deadline() == absl::InfiniteDuration()) return false;
    now = std::max(now, sender.next_deadline());
    sender.OnDeadline(now, actions_);
    Check();
    return true;
  }

  // Kinds that came out since the last call, e.g. "chunk 0, commit".
  std::string Take() {
    std::string text;
    for (const std::string& word : log_) text += (text.empty() ? "" : ", ") + word;
    log_.clear();
    return text;
  }

  // However it stands, the transfer ends and gives everything back, when local sends complete.
  void Drain() {
    for (int round = 0; round < 100 && !sender.over(); ++round) {
      const std::set<std::uint32_t> in_flight = sending;
      for (std::uint32_t seq : in_flight) (void)Done(seq);
      if (sender.over()) break;
      if (!Expire()) Abort();
    }
    EXPECT_TRUE(sender.over()) << StateName(sender.state());
    EXPECT_TRUE(closed);
    EXPECT_TRUE(held.empty());
    EXPECT_TRUE(sending.empty());
    EXPECT_EQ(sender.next_deadline(), absl::InfiniteDuration());
  }

  BlockSender sender;
  MonoTime now = absl::Seconds(100);
  std::set<std::uint32_t> held;     // slots that the sender owns
  std::set<std::uint32_t> sending;  // sends without completion
  std::vector<absl::Status> reports;
  bool closed = false;
  std::map<std::uint32_t, int> posts;

 private:
  void Check() {
    for (const SenderAction& action : actions_) Apply(action);
    actions_.clear();
    EXPECT_LE(sender.outstanding(), credits_);
    EXPECT_LE(reports.size(), 1u);
    if (closed) {
      EXPECT_TRUE(sender.over());
      EXPECT_TRUE(held.empty());
    }
  }
  void Apply(const SenderAction& action) {
    const std::uint32_t seq = action.chunk_seq;
    switch (action.kind) {
      case Kind::kSendChunk:
        EXPECT_FALSE(closed);
        EXPECT_TRUE(held.contains(seq)) << "sent from a slot that was given back";
        EXPECT_TRUE(sending.insert(seq).second) << "two sends of one slot at once";
        EXPECT_LE(++posts[seq], 1 + limits_.max_resends);
        log_.push_back("chunk " + std::to_string(seq));
        return;
      case Kind::kFreeSlot:
        EXPECT_EQ(held.erase(seq), 1u) << "freed twice";
        EXPECT_FALSE(sending.contains(seq)) << "freed while a send reads it";
        log_.push_back("free " + std::to_string(seq));
        return;
      case Kind::kSendCommit:
        EXPECT_FALSE(closed);
        log_.push_back("commit");
        return;
      case Kind::kSendAbort:
        EXPECT_TRUE(sending.empty()) << "ABORT while own sends are in flight";
        log_.push_back("abort");
        return;
      case Kind::kSendAbortAck:
        EXPECT_TRUE(sending.empty()) << "ABORT_ACK while own sends are in flight";
        log_.push_back("abort_ack");
        return;
      case Kind::kDisconnect:
        EXPECT_FALSE(sending.empty());
        log_.push_back("disconnect");
        return;
      case Kind::kReport:
        EXPECT_FALSE(closed);
        reports.push_back(action.status);
        log_.push_back(action.status.ok() ? "report ok" : "report failure");
        return;
      case Kind::kClosed:
        EXPECT_FALSE(closed) << "closed twice";
        EXPECT_EQ(reports.size(), 1u);
        closed = true;
        log_.push_back("closed");
        return;
    }
  }

  const std::uint32_t credits_;
  const SenderLimits limits_;
  SenderActions actions_;
  std::vector<std::string> log_;
};

Harness Sending(int chunks, std::uint32_t credits = 2) {
  Harness h(credits);
  EXPECT_TRUE(h.Grant().ok());
  for (int i = 0; i < chunks; ++i) EXPECT_TRUE(h.Add().ok());
  return h;
}

TEST(BlockSender, GoesThroughAllStatesOfASuccess) {
  Harness h(2);
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
  Harness h = Sending(4);
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
  Harness h = Sending(1);
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
  Harness h = Sending(2);
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
  Harness h = Sending(1);
  ASSERT_TRUE(h.Message(MessageType::kAbort, 0, static_cast<absl::StatusCode>(12345)).ok());
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kUnknown);
  h.Drain();
}

TEST(BlockSender, SilenceResendsWithDoublingDeadlinesThenFails) {
  Harness h = Sending(1);
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
  Harness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  h.Take();
  SenderActions out;
  h.sender.OnDeadline(h.now, out);
  EXPECT_TRUE(out.empty());
  h.Drain();
}

TEST(BlockSender, CommitIsRepeatedOnlyWhenAllIsAcknowledged) {
  Harness h = Sending(1);
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
  Harness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Ack(0).ok());
  EXPECT_EQ(h.sender.next_deadline(), absl::InfiniteDuration());
  h.Drain();
}

TEST(BlockSender, AdoptedImpliesLostAcks) {
  Harness h = Sending(2);
  ASSERT_TRUE(h.Commit().ok());
  ASSERT_TRUE(h.Done(0).ok());
  ASSERT_TRUE(h.Done(1).ok());
  h.Take();
  ASSERT_TRUE(h.Message(MessageType::kAdopted).ok());
  EXPECT_EQ(h.Take(), "free 0, free 1, report ok, closed");
  EXPECT_EQ(h.sender.acked_bytes(), 2 * kBytes);
}

TEST(BlockSender, LateMessagesOfARetainedTransferChangeNothing) {
  Harness h = Sending(1);
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
  Harness h = Sending(3);
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
  Harness h = Sending(1);
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
  Harness h = Sending(1);
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
  Harness h = Sending(1);
  ASSERT_TRUE(h.Done(0).ok());
  h.Abort();
  h.Take();
  ASSERT_TRUE(h.Message(MessageType::kAbort).ok());
  EXPECT_EQ(h.Take(), "abort_ack, closed");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kCancelled) << "the first cause stands";
}

TEST(BlockSender, OfferedTransferAbortsSilently) {
  Harness h;
  h.Abort();
  EXPECT_EQ(h.Take(), "report failure, closed");
}

TEST(BlockSender, FailedSendFailsTheTransfer) {
  Harness h = Sending(1);
  h.Take();
  ASSERT_TRUE(h.Done(0, absl::UnavailableError("broken pipe")).ok());
  EXPECT_EQ(h.Take(), "free 0, report failure, abort");
  EXPECT_EQ(h.sender.cause().code(), absl::StatusCode::kUnavailable);
  h.PeerLost();
  EXPECT_EQ(h.Take(), "closed");
}

TEST(BlockSender, IllegalEventsChangeNothing) {
  Harness h(2);
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
  Harness h = Sending(1);
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

// Every sequence of events up to a length, legal or not: the promises that Harness checks hold at
// each step, and from wherever it leads the transfer can end with all slots back.
struct Event {
  const char* name;
  void (*run)(Harness&);
};
constexpr Event kEvents[] = {
    {"add", [](Harness& h) { (void)h.Add(); }},
    {"commit", [](Harness& h) { (void)h.Commit(); }},
    {"done0", [](Harness& h) { (void)h.Done(0); }},
    {"done1", [](Harness& h) { (void)h.Done(1); }},
    {"fail0", [](Harness& h) { (void)h.Done(0, absl::UnavailableError("down")); }},
    {"ack0", [](Harness& h) { (void)h.Ack(0); }},
    {"ack1", [](Harness& h) { (void)h.Ack(1); }},
    {"nack0", [](Harness& h) { (void)h.Nack(0); }},
    {"adopted", [](Harness& h) { (void)h.Message(MessageType::kAdopted); }},
    {"peer_abort", [](Harness& h) { (void)h.Message(MessageType::kAbort); }},
    {"abort_ack", [](Harness& h) { (void)h.Message(MessageType::kAbortAck); }},
    {"abort", [](Harness& h) { h.Abort(); }},
    {"lost", [](Harness& h) { h.PeerLost(); }},
    {"expire", [](Harness& h) { (void)h.Expire(); }},
};

void Explore(std::vector<int>& path, int depth) {
  Harness h(1, {.max_resends = 1});
  ASSERT_TRUE(h.Grant().ok());
  std::string names;
  for (int event : path) {
    kEvents[event].run(h);
    names += std::string(" ") + kEvents[event].name;
  }
  h.Drain();
  ASSERT_FALSE(testing::Test::HasFailure()) << "after" << names;
  if (depth == 0) return;
  for (std::size_t event = 0; event < std::size(kEvents); ++event) {
    path.push_back(static_cast<int>(event));
    Explore(path, depth - 1);
    path.pop_back();
    if (testing::Test::HasFailure()) return;
  }
}

TEST(BlockSender, EveryEventOrderKeepsThePromises) {
  std::vector<int> path = {0};  // from the first chunk on
  Explore(path, 4);
  path = {0, 0, 1, 2, 5, 3};  // two chunks sent, commit, second one unacknowledged
  Explore(path, 4);
  path = {0, 2, 7};  // resent once
  Explore(path, 4);
}

}  // namespace
}  // namespace kvferry::prefill
