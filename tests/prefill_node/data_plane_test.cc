#include "prefill_node/data_plane.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "common/crc32c.h"
#include "tests/fakes/fake_receiver.h"
#include "tests/fakes/wait_limit.h"
#include "transport/loopback/loopback_transport.h"

namespace kvferry::prefill {
namespace {

using fakes::FakeReceiver;
using transport::LoopbackNetwork;

constexpr std::uint32_t kSlots = 4;
constexpr std::size_t kSlotBytes = 8192;

// A data plane and a receiver on one network.
class DataPlaneTest : public testing::Test {
 protected:
  void Start(SenderLimits limits = {.ack_deadline = absl::Milliseconds(100),
                                    .max_resends = 3,
                                    .progress_limit = absl::Seconds(5)}) {
    auto plane = DataPlane::Create(
        {.incarnation = kSender, .slot_bytes = kSlotBytes, .slots = kSlots, .limits = limits},
        [this](Incarnation incarnation, transport::MessageSink* sink, const Clock& clock) {
          return network_->CreateTransport({.incarnation = static_cast<std::uint64_t>(incarnation),
                                            .heartbeat_interval = absl::Milliseconds(50),
                                            .silence_limit = absl::Milliseconds(400)},
                                           sink, clock);
        },
        Clock::Steady(), *metrics_);
    ASSERT_TRUE(plane.ok()) << plane.status();
    plane_ = *std::move(plane);
    Pair();
  }
  void Pair() {
    receiver_.Connect(plane_->LocalAddress(), kSender);
    ASSERT_TRUE(plane_
                    ->AddPeer({.incarnation = receiver_.incarnation,
                               .name = "decode-0",
                               .data_address = receiver_.address(),
                               .key = receiver_.key})
                    .ok());
  }
  void TearDown() override {
    if (plane_ == nullptr) return;
    EXPECT_TRUE(plane_->WaitIdle(fakes::kWaitLimit));
    EXPECT_EQ(plane_->free_slots(), kSlots);
    plane_->Stop();
  }

  struct Pending {
    TransferId id = TransferId::Random();
    absl::Notification ended;
    TransferResult result;
  };
  absl::Status Open(Pending& transfer, std::uint32_t credits = 2) {
    return plane_->OpenTransfer({.id = transfer.id,
                                 .epoch = Epoch{1},
                                 .decode = receiver_.incarnation,
                                 .credits = credits,
                                 .total_bytes = 1,
                                 .on_result = [&transfer](const TransferResult& result) {
                                   transfer.result = result;
                                   transfer.ended.Notify();
                                 }});
  }
  static std::byte ByteOf(std::uint32_t chunk, std::size_t at) {
    return static_cast<std::byte>(chunk * 31 + at * 7);
  }
  static std::uint32_t SizeOf(std::uint32_t chunk) { return 1000 + 500 * chunk; }
  absl::Status Send(const Pending& transfer, std::uint32_t chunk) {
    auto slot = plane_->AcquireSlot(transfer.id);
    if (!slot.ok()) return slot.status();
    const std::span<std::byte> payload = slot->bytes().first(SizeOf(chunk));
    for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = ByteOf(chunk, i);
    return plane_->SendChunk(transfer.id,
                             {.layer_begin = static_cast<std::uint16_t>(chunk),
                              .layer_count = 1,
                              .kv_head_count = 1,
                              .token_count = 64,
                              .head_dim = 64,
                              .codec_hash = 99,
                              .payload_check = Crc32c(payload),
                              .payload_bytes = SizeOf(chunk)},
                             *std::move(slot));
  }
  absl::Status Wait(Pending& transfer) {
    if (!transfer.ended.WaitForNotificationWithTimeout(fakes::kWaitLimit)) {
      return absl::DeadlineExceededError("no result");
    }
    return transfer.result.status;
  }
  void CheckReceived(const Pending& transfer, std::uint32_t chunks) {
    const FakeReceiver::Received received = receiver_.Get(transfer.id);
    ASSERT_EQ(received.payloads.size(), chunks);
    for (const auto& [seq, payload] : received.payloads) {
      ASSERT_EQ(payload.size(), SizeOf(seq));
      EXPECT_EQ(received.headers.at(seq).layer_begin, seq);
      for (std::size_t i = 0; i < payload.size(); ++i) {
        ASSERT_EQ(payload[i], ByteOf(seq, i)) << "chunk " << seq << ", byte " << i;
      }
    }
    EXPECT_EQ(received.commit_chunks, chunks);
    EXPECT_EQ(received.first_token, 7);
  }

  static constexpr Incarnation kSender{77};
  std::unique_ptr<Metrics> metrics_ = Metrics::Create();
  std::unique_ptr<LoopbackNetwork> network_ = LoopbackNetwork::Create();
  FakeReceiver receiver_{*network_, Clock::Steady()};
  std::unique_ptr<DataPlane> plane_;
};

TEST_F(DataPlaneTest, DeliversATransfer) {
  Start();
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  for (std::uint32_t chunk = 0; chunk < 10; ++chunk) ASSERT_TRUE(Send(transfer, chunk).ok());
  ASSERT_TRUE(plane_->Commit(transfer.id, 7).ok());
  ASSERT_TRUE(Wait(transfer).ok());
  CheckReceived(transfer, 10);
  EXPECT_EQ(transfer.result.shipment.chunks, 10u);
  EXPECT_EQ(transfer.result.shipment.resent_chunks, 0u);
  EXPECT_EQ(transfer.result.shipment.transport, "loopback");
  std::uint64_t bytes = 0;
  for (std::uint32_t chunk = 0; chunk < 10; ++chunk) bytes += SizeOf(chunk);
  EXPECT_EQ(transfer.result.shipment.payload_bytes, bytes);
}

TEST_F(DataPlaneTest, TellsWhatATransferHasShippedSoFar) {
  Start({.ack_deadline = absl::Seconds(10), .progress_limit = absl::Seconds(60)});
  receiver_.Behave({.silent = true});
  Pending transfer;
  ASSERT_TRUE(Open(transfer, 2).ok());
  EXPECT_EQ(plane_->Shipped(transfer.id).transport, "loopback");
  EXPECT_EQ(plane_->Shipped(transfer.id).chunks, 0u);
  for (std::uint32_t chunk = 0; chunk < 3; ++chunk) ASSERT_TRUE(Send(transfer, chunk).ok());
  EXPECT_EQ(plane_->Shipped(transfer.id).chunks, 2u) << "two credits, and nothing is answered";
  EXPECT_EQ(plane_->Shipped(transfer.id).payload_bytes, SizeOf(0) + SizeOf(1));
  receiver_.Behave({});
  plane_->Abort(transfer.id, absl::CancelledError("enough"));
  EXPECT_EQ(Wait(transfer).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(transfer.result.shipment.chunks, 2u);
  EXPECT_TRUE(plane_->WaitIdle(fakes::kWaitLimit));
  EXPECT_EQ(plane_->Shipped(transfer.id).transport, "") << "it is over";
}

TEST_F(DataPlaneTest, SurvivesABadNetwork) {
  Start({.ack_deadline = absl::Milliseconds(20),
         .max_resends = 12,
         .progress_limit = absl::Seconds(20)});
  network_->SetFaults({.seed = 5,
                       .lose = 0.1,
                       .duplicate = 0.1,
                       .reorder = 0.2,
                       .corrupt_payload = 0.1,
                       .corrupt_header = 0.05});
  for (int round = 0; round < 5; ++round) {
    Pending transfer;
    ASSERT_TRUE(Open(transfer).ok());
    for (std::uint32_t chunk = 0; chunk < 6; ++chunk) ASSERT_TRUE(Send(transfer, chunk).ok());
    ASSERT_TRUE(plane_->Commit(transfer.id, 7).ok());
    ASSERT_TRUE(Wait(transfer).ok()) << transfer.result.status;
    CheckReceived(transfer, 6);
  }
  network_->SetFaults({});
}

TEST_F(DataPlaneTest, BadChecksEndWithDataLoss) {
  Start();
  receiver_.Behave({.nack = true});
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  ASSERT_TRUE(Send(transfer, 0).ok());
  EXPECT_EQ(Wait(transfer).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(transfer.result.shipment.resent_chunks, 3u);
  EXPECT_TRUE(receiver_.Wait(transfer.id, [](const auto& t) { return t.aborted; }));
  EXPECT_EQ(Send(transfer, 1).ok(), false);
}

TEST_F(DataPlaneTest, SilenceEndsWithUnavailable) {
  Start({.ack_deadline = absl::Milliseconds(10),
         .max_resends = 3,
         .progress_limit = absl::Milliseconds(300)});
  receiver_.Behave({.silent = true});
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  ASSERT_TRUE(Send(transfer, 0).ok());
  EXPECT_EQ(Wait(transfer).code(), absl::StatusCode::kUnavailable);
}

TEST_F(DataPlaneTest, AbortTellsTheReceiver) {
  Start();
  receiver_.Behave({.never_adopt = true});
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  ASSERT_TRUE(Send(transfer, 0).ok());
  ASSERT_TRUE(plane_->Commit(transfer.id, 7).ok());
  plane_->Abort(transfer.id, absl::CancelledError("stop"));
  plane_->Abort(transfer.id, absl::CancelledError("again"));
  EXPECT_EQ(Wait(transfer), absl::CancelledError("stop"));
  EXPECT_TRUE(receiver_.Wait(transfer.id, [](const auto& t) { return t.aborted; }));
  EXPECT_TRUE(plane_->WaitIdle(fakes::kWaitLimit));
  EXPECT_EQ(plane_->Commit(transfer.id, 7).code(), absl::StatusCode::kAborted);
}

TEST_F(DataPlaneTest, ReceiverAbortIsObeyedAndAnswered) {
  Start();
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  ASSERT_TRUE(Send(transfer, 0).ok());
  receiver_.Abort(transfer.id, Epoch{1}, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Wait(transfer).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(receiver_.WaitAbortAck(transfer.id));
}

TEST_F(DataPlaneTest, AbortOfAnUnknownTransferIsAnswered) {
  Start();
  const TransferId id = TransferId::Random();
  receiver_.Abort(id, Epoch{3}, absl::StatusCode::kAborted);
  EXPECT_TRUE(receiver_.WaitAbortAck(id));
}

TEST_F(DataPlaneTest, AnotherEpochChangesNothing) {
  Start();
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  receiver_.Abort(transfer.id, Epoch{2}, absl::StatusCode::kAborted);
  ASSERT_TRUE(Send(transfer, 0).ok());
  ASSERT_TRUE(plane_->Commit(transfer.id, 7).ok());
  EXPECT_TRUE(Wait(transfer).ok());
}

TEST_F(DataPlaneTest, APartitionEndsTransfersAndANewHandshakeRestoresThePair) {
  Start();
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  network_->Partition(plane_->LocalAddress(), receiver_.address(), true);
  ASSERT_TRUE(Send(transfer, 0).ok());
  EXPECT_EQ(Wait(transfer).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(plane_->HasPeer(receiver_.incarnation));
  Pending refused;
  EXPECT_EQ(Open(refused).code(), absl::StatusCode::kUnavailable);
  network_->Partition(plane_->LocalAddress(), receiver_.address(), false);
  Pair();
  Pending again;
  ASSERT_TRUE(Open(again).ok());
  ASSERT_TRUE(Send(again, 0).ok());
  ASSERT_TRUE(plane_->Commit(again.id, 7).ok());
  EXPECT_TRUE(Wait(again).ok());
}

TEST_F(DataPlaneTest, AcquireWaitsForASlotAndEndsWithTheTransfer) {
  Start();
  receiver_.Behave({.silent = true});
  Pending transfer;
  ASSERT_TRUE(Open(transfer, 1).ok());
  for (std::uint32_t chunk = 0; chunk < kSlots; ++chunk) ASSERT_TRUE(Send(transfer, chunk).ok());
  absl::Status waited;
  std::thread waiter([&] { waited = plane_->AcquireSlot(transfer.id).status(); });
  plane_->Abort(transfer.id, absl::CancelledError("stop"));
  waiter.join();
  EXPECT_FALSE(waited.ok());
  receiver_.Behave({});
  EXPECT_TRUE(plane_->WaitIdle(fakes::kWaitLimit));
  EXPECT_EQ(plane_->AcquireSlot(transfer.id).status().code(), absl::StatusCode::kAborted);
}

TEST_F(DataPlaneTest, AnUnsentSlotComesBack) {
  Start();
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  {
    auto slot = plane_->AcquireSlot(transfer.id);
    ASSERT_TRUE(slot.ok());
    SendSlot moved = *std::move(slot);
    EXPECT_EQ(plane_->free_slots(), kSlots - 1);
  }
  EXPECT_EQ(plane_->free_slots(), kSlots);
  plane_->Abort(transfer.id, absl::CancelledError("stop"));
}

TEST_F(DataPlaneTest, RefusesWhatCannotBe) {
  Start();
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  EXPECT_EQ(Open(transfer).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(plane_->Commit(transfer.id, 7).code(), absl::StatusCode::kFailedPrecondition);
  const auto snapshots = plane_->Transfers();
  ASSERT_EQ(snapshots.size(), 1u);
  EXPECT_EQ(snapshots[0].state, "GRANTED");
  EXPECT_EQ(snapshots[0].peer, "decode-0");
  plane_->Abort(transfer.id, absl::CancelledError("stop"));
  EXPECT_EQ(plane_->AddPeer({.incarnation = Incarnation{5}, .data_address = "nonsense"}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(DataPlaneTest, StopEndsWhatRuns) {
  Start();
  receiver_.Behave({.silent = true});
  Pending transfer;
  ASSERT_TRUE(Open(transfer).ok());
  ASSERT_TRUE(Send(transfer, 0).ok());
  plane_->Stop();
  EXPECT_EQ(Wait(transfer).code(), absl::StatusCode::kCancelled);
  plane_ = nullptr;
}

}  // namespace
}  // namespace kvferry::prefill
