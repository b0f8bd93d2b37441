// Sender and receiver together over a network that fails: whatever happens, a transfer either
// adopts exactly the bytes that were quantized or fails on both sides, and every slot and page
// comes back.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "tests/fault/transfer_pair.h"

namespace kvferry::fault {
namespace {

constexpr int kTokens = 450;

Transfer OpenOrDie(TransferPair& pair, int tokens = kTokens) {
  absl::StatusOr<Transfer> transfer = pair.Open(tokens);
  EXPECT_TRUE(transfer.ok()) << transfer.status();
  return *std::move(transfer);
}

void ExpectAdopted(TransferPair& pair, int tokens = kTokens) {
  const Transfer transfer = OpenOrDie(pair, tokens);
  ASSERT_TRUE(pair.SendChunks(transfer, 0, transfer.chunks.size()).ok());
  ASSERT_TRUE(pair.Commit(transfer).ok());
  ASSERT_TRUE(transfer.outcome->WaitSender().ok()) << transfer.outcome->WaitSender();
  ASSERT_TRUE(transfer.outcome->WaitReceiver().ok());
  pair.CheckAndFinish(transfer);
}

TEST(Transfer, AdoptsExactlyWhatWasQuantized) {
  for (const char* codec : {"kivi-4-g64", "kivi-2", "fp16", "int8", "fp8", "nqkv-nf4", "lm3",
                            "kivi-4-g64:layer.1=2/8"}) {
    SCOPED_TRACE(codec);
    TransferPair pair({.codec = codec});
    for (int tokens : {1, 4, 5, 132, 133, 450}) ExpectAdopted(pair, tokens);
    pair.ExpectAllFree();
  }
}

TEST(Transfer, PayloadsLieOnADeviceWhereBothSidesHaveOne) {
  TransferPair pair({.sender_on_device = true, .receiver_on_device = true});
  const Transfer transfer = OpenOrDie(pair);
  ASSERT_TRUE(pair.SendChunks(transfer, 0, transfer.chunks.size()).ok());
  ASSERT_TRUE(pair.Commit(transfer).ok());
  ASSERT_TRUE(transfer.outcome->WaitReceiver().ok());
  auto adopted = transfer.outcome->TakeSequence();
  ASSERT_TRUE(adopted.has_value());
  EXPECT_EQ(adopted->transport, "device");
  adopted->cache.reset();
  pair.receiver().Finish(transfer.id);
  EXPECT_EQ(pair.device_paths().device_payloads, static_cast<int>(transfer.chunks.size()));
  EXPECT_EQ(pair.device_paths().host_payloads, 0);
  ExpectAdopted(pair);  // whole, too
  pair.ExpectAllFree();
}

TEST(Transfer, PayloadsLieInHostMemoryWhereOneSideHasNoDevice) {
  for (const bool sender : {false, true}) {
    TransferPair pair({.sender_on_device = sender, .receiver_on_device = !sender});
    ExpectAdopted(pair);
    EXPECT_EQ(pair.device_paths().device_payloads, 0);
    pair.ExpectAllFree();
  }
}

TEST(Transfer, SeveralAtOnce) {
  TransferPair pair({.landing_slots = 16});
  std::vector<Transfer> transfers;
  for (int i = 0; i < 4; ++i) transfers.push_back(OpenOrDie(pair, 200 + 60 * i));
  for (std::size_t chunk = 0; chunk < 64; ++chunk) {
    for (const Transfer& transfer : transfers) {
      if (chunk >= transfer.chunks.size()) continue;
      ASSERT_TRUE(pair.SendChunk(transfer, chunk).ok());
    }
  }
  for (const Transfer& transfer : transfers) ASSERT_TRUE(pair.Commit(transfer).ok());
  for (const Transfer& transfer : transfers) {
    ASSERT_TRUE(transfer.outcome->WaitReceiver().ok());
    pair.CheckAndFinish(transfer);
  }
  pair.ExpectAllFree();
}

struct NamedFaults {
  const char* name;
  transport::LoopbackFaults faults;
};

class BadNetwork : public testing::TestWithParam<NamedFaults> {};

TEST_P(BadNetwork, TransfersArriveWhole) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    TransferPair pair({.adopter_threads = static_cast<int>(seed % 3)});
    transport::LoopbackFaults faults = GetParam().faults;
    faults.seed = seed;
    pair.SetFaults(faults);
    ExpectAdopted(pair, 300);
    pair.SetFaults({});
    pair.ExpectAllFree();
  }
}

INSTANTIATE_TEST_SUITE_P(Faults, BadNetwork,
                         testing::Values(NamedFaults{"lose", {.lose = 0.15}},
                                         NamedFaults{"duplicate", {.duplicate = 0.5}},
                                         NamedFaults{"reorder", {.reorder = 0.5}},
                                         NamedFaults{"corrupt_payload", {.corrupt_payload = 0.25}},
                                         NamedFaults{"corrupt_header", {.corrupt_header = 0.15}},
                                         NamedFaults{"delay", {.delay = absl::Milliseconds(5)}},
                                         NamedFaults{"all",
                                                     {.lose = 0.05,
                                                      .duplicate = 0.1,
                                                      .reorder = 0.2,
                                                      .corrupt_payload = 0.1,
                                                      .corrupt_header = 0.05,
                                                      .delay = absl::Milliseconds(1)}}),
                         [](const auto& info) { return info.param.name; });

TEST(Transfer, DamageThatStaysIsDataLossOnBothSides) {
  TransferPair pair;
  const Transfer transfer = OpenOrDie(pair);
  pair.SetFaults({.corrupt_payload = 1});
  (void)pair.SendChunks(transfer, 0, transfer.chunks.size());
  EXPECT_EQ(transfer.outcome->WaitSender().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(transfer.outcome->WaitReceiver().code(), absl::StatusCode::kDataLoss);
  pair.ExpectAllFree();
  pair.SetFaults({});
  ExpectAdopted(pair);
}

// How far a transfer is when something happens to it.
enum class Stage { kGranted, kFirstChunk, kHalf, kAllChunks, kCommitted };
constexpr Stage kStages[] = {Stage::kGranted, Stage::kFirstChunk, Stage::kHalf, Stage::kAllChunks,
                             Stage::kCommitted};

// The network gets bad before the last few chunks alone, so few that sending them waits for no
// answer: a transfer for which the bad network has been too much would never get to its stage.
constexpr std::size_t kLastChunks = 3;

void Advance(TransferPair& pair, const Transfer& transfer, Stage stage,
             const transport::LoopbackFaults& faults = {}) {
  const std::size_t all = transfer.chunks.size();
  const std::size_t count = stage == Stage::kGranted      ? 0
                            : stage == Stage::kFirstChunk ? 1
                            : stage == Stage::kHalf       ? all / 2
                                                          : all;
  const std::size_t good = count - std::min(count, kLastChunks);
  ASSERT_TRUE(pair.SendChunks(transfer, 0, good).ok());
  pair.SetFaults(faults);
  ASSERT_TRUE(pair.SendChunks(transfer, good, count).ok());
  if (stage != Stage::kCommitted) return;
  ASSERT_TRUE(pair.Commit(transfer).ok());
}

// Whoever was adopted first keeps the sequence; it is given back like any other.
void ExpectEndedEitherWay(TransferPair& pair, const Transfer& transfer) {
  const absl::Status sender = transfer.outcome->WaitSender();
  EXPECT_NE(sender.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(transfer.outcome->WaitReceiver().code(), absl::StatusCode::kDeadlineExceeded);
  if (std::optional<decode::AdoptedSequence> adopted = transfer.outcome->TakeSequence()) {
    adopted->cache.reset();
    pair.receiver().Finish(transfer.id);
  }
  pair.ExpectAllFree();
}

// A receiver that nothing has reached yet learns of a lost sender by its lease alone.
constexpr absl::Duration kLostLease = absl::Seconds(3);

// With chunks adopted on the progress thread, and on one of their own.
class AtStage : public testing::TestWithParam<std::tuple<Stage, int>> {
 protected:
  static Stage stage() { return std::get<0>(GetParam()); }
  static int adopter_threads() { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Stages, AtStage,
                         testing::Combine(testing::ValuesIn(kStages), testing::Values(0, 2)));

TEST_P(AtStage, TheSenderGivesUp) {
  for (const double lose : {0.0, 0.3}) {
    TransferPair pair({.adopter_threads = adopter_threads()});
    const Transfer transfer = OpenOrDie(pair);
    Advance(pair, transfer, stage(), {.lose = lose, .delay = absl::Milliseconds(2)});
    pair.AbortSender(transfer);
    EXPECT_FALSE(pair.SendChunk(transfer, 0).ok());
    pair.SetFaults({});
    ExpectEndedEitherWay(pair, transfer);
    ExpectAdopted(pair);
    pair.ExpectAllFree();
  }
}

TEST_P(AtStage, TheReceiverGivesUp) {
  for (const double lose : {0.0, 0.3}) {
    TransferPair pair({.adopter_threads = adopter_threads()});
    const Transfer transfer = OpenOrDie(pair);
    Advance(pair, transfer, stage(), {.lose = lose, .delay = absl::Milliseconds(2)});
    pair.ReleaseReceiver(transfer);
    pair.SetFaults({});
    // A sender that has sent nothing yet learns of it from the answer to its first chunk.
    if (stage() == Stage::kGranted) (void)pair.SendChunk(transfer, 0);
    ExpectEndedEitherWay(pair, transfer);
    ExpectAdopted(pair);
    pair.ExpectAllFree();
  }
}

TEST_P(AtStage, BothGiveUpAtOnce) {
  TransferPair pair({.adopter_threads = adopter_threads()});
  const Transfer transfer = OpenOrDie(pair);
  Advance(pair, transfer, stage(), {.lose = 0.2, .delay = absl::Milliseconds(2)});
  pair.ReleaseReceiver(transfer);
  pair.AbortSender(transfer);
  pair.SetFaults({});
  ExpectEndedEitherWay(pair, transfer);
}

TEST_P(AtStage, ThePairIsCutAndConnectsAgain) {
  TransferPair pair({.lease = kLostLease,
                     .silence_limit = absl::Milliseconds(1500),
                     .adopter_threads = adopter_threads()});
  const Transfer transfer = OpenOrDie(pair);
  Advance(pair, transfer, stage());
  pair.Partition(true);
  ExpectEndedEitherWay(pair, transfer);
  pair.Partition(false);
  // Each side has noticed by its own heartbeats when its transfers are over.
  pair.Connect();
  ExpectAdopted(pair);
  pair.ExpectAllFree();
}

TEST_P(AtStage, TheSenderStops) {
  TransferPair pair({.lease = kLostLease, .adopter_threads = adopter_threads()});
  const Transfer transfer = OpenOrDie(pair);
  Advance(pair, transfer, stage());
  pair.sender().Stop();
  ExpectEndedEitherWay(pair, transfer);
}

TEST_P(AtStage, TheReceiverStops) {
  TransferPair pair({.adopter_threads = adopter_threads()});
  const Transfer transfer = OpenOrDie(pair);
  Advance(pair, transfer, stage());
  pair.receiver().Stop();
  ExpectEndedEitherWay(pair, transfer);
}

TEST(Transfer, AReceiverThatIsFullRefusesAndNothingIsTaken) {
  TransferPair pair;
  std::vector<Transfer> transfers;
  absl::Status refused;
  while (refused.ok()) {
    absl::StatusOr<Transfer> transfer = pair.Open(kTokens);
    refused = transfer.status();
    if (transfer.ok()) transfers.push_back(*std::move(transfer));
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  for (const Transfer& transfer : transfers) {
    ASSERT_TRUE(pair.SendChunks(transfer, 0, 1).ok());
    pair.AbortSender(transfer);
  }
  for (const Transfer& transfer : transfers) ExpectEndedEitherWay(pair, transfer);
  ExpectAdopted(pair);
}

}  // namespace
}  // namespace kvferry::fault
