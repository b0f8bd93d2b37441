#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "prefill_node/block_sender.h"

namespace kvferry::prefill {

inline constexpr std::uint32_t kBytes = 1000;

inline TransferId TestId() {
  TransferId id;
  id.bytes[0] = 7;
  return id;
}

// A sender with its shell's bookkeeping: every action is checked against the promises of the class
// as it comes out.
class SenderHarness {
 public:
  explicit SenderHarness(std::uint32_t credits = 2, SenderLimits limits = {})
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
  absl::Status Message(transport::MessageType type, std::uint32_t seq = 0,
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
  absl::Status Ack(std::uint32_t seq) { return Message(transport::MessageType::kAck, seq); }
  absl::Status Nack(std::uint32_t seq) { return Message(transport::MessageType::kNack, seq); }
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
      case SenderAction::Kind::kSendChunk:
        EXPECT_FALSE(closed);
        EXPECT_TRUE(held.contains(seq)) << "sent from a slot that was given back";
        EXPECT_TRUE(sending.insert(seq).second) << "two sends of one slot at once";
        EXPECT_LE(++posts[seq], 1 + limits_.max_resends);
        log_.push_back("chunk " + std::to_string(seq));
        return;
      case SenderAction::Kind::kFreeSlot:
        EXPECT_EQ(held.erase(seq), 1u) << "freed twice";
        EXPECT_FALSE(sending.contains(seq)) << "freed while a send reads it";
        log_.push_back("free " + std::to_string(seq));
        return;
      case SenderAction::Kind::kSendCommit:
        EXPECT_FALSE(closed);
        log_.push_back("commit");
        return;
      case SenderAction::Kind::kSendAbort:
        EXPECT_TRUE(sending.empty()) << "ABORT while own sends are in flight";
        log_.push_back("abort");
        return;
      case SenderAction::Kind::kSendAbortAck:
        EXPECT_TRUE(sending.empty()) << "ABORT_ACK while own sends are in flight";
        log_.push_back("abort_ack");
        return;
      case SenderAction::Kind::kDisconnect:
        EXPECT_FALSE(sending.empty());
        log_.push_back("disconnect");
        return;
      case SenderAction::Kind::kReport:
        EXPECT_FALSE(closed);
        reports.push_back(action.status);
        log_.push_back(action.status.ok() ? "report ok" : "report failure");
        return;
      case SenderAction::Kind::kClosed:
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

}  // namespace kvferry::prefill
