#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/integration/worker_faults.h"

// Workers die in the middle of a transfer or of decoding: no request fails, no token is repeated or
// missing, the answers are those of an undisturbed run, and nothing is left behind. For workers on
// any device: whoever includes this instantiates it.
namespace kvferry::testing {

struct FaultSetup {
  const char* name = "";
  // kUnavailable: this machine has not got them; the tests are skipped.
  std::function<absl::StatusOr<FaultDevices>()> devices;
  // Bytes of the devices that anybody uses; empty: they have no memory of their own.
  std::function<absl::StatusOr<std::uint64_t>()> device_bytes_in_use;
};

class WorkerFaultTest : public ::testing::TestWithParam<FaultSetup> {
 protected:
  // Less than the 64 MiB of one prefill worker's send slots.
  static constexpr std::uint64_t kDeviceSlack = 48 << 20;

  static void TearDownTestSuite() { faults_.reset(); }
  void SetUp() override {
    const absl::StatusOr<FaultDevices> devices = GetParam().devices();
    if (absl::IsUnavailable(devices.status())) GTEST_SKIP() << devices.status().message();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (faults_ != nullptr) return;
    auto faults = WorkerFaults::Start(*devices);
    ASSERT_TRUE(faults.ok()) << faults.status();
    faults_ = *std::move(faults);
    RecordProperty("comparable_tokens", static_cast<int>(faults_->comparable_tokens()));
    ASSERT_GE(faults_->comparable_tokens(), 40u) << "the margins leave too little to compare";
  }

  void ExpectUndisturbedRun() {
    const absl::Status answers = faults_->CheckAnswers(faults_->RunStreams());
    EXPECT_TRUE(answers.ok()) << answers;
    const absl::Status idle = faults_->AwaitIdle();
    EXPECT_TRUE(idle.ok()) << idle;
  }

  // Some bytes have passed, some have not. What states it has meanwhile depends on how large chunks
  // are: of a few large ones, all may be on their way when prefill ends.
  static bool IsUnderWay(const v1::TransferState& transfer) {
    return transfer.bytes_done() > 0 && transfer.bytes_done() < transfer.bytes_total();
  }
  static bool IsRunning(const v1::TransferState& transfer) { return transfer.state() == "RUNNING"; }

  void KillAndCheck(const std::string& role, bool (*is_such)(const v1::TransferState&)) {
    const auto answers = faults_->RunStreamsAndKill(role, is_such);
    ASSERT_TRUE(answers.ok()) << answers.status();
    const absl::Status good = faults_->CheckAnswers(*answers);
    EXPECT_TRUE(good.ok()) << good;
    EXPECT_TRUE(std::any_of(answers->begin(), answers->end(), [](const Answer& answer) {
      return answer.finished.attempts() > 1;
    })) << "the worker died without a request";
    const absl::Status idle = faults_->AwaitIdle();
    EXPECT_TRUE(idle.ok()) << idle;
  }

  static inline std::unique_ptr<WorkerFaults> faults_;
};

TEST_P(WorkerFaultTest, AnUndisturbedRunGivesTheReferencesTokens) { ExpectUndisturbedRun(); }

TEST_P(WorkerFaultTest, DecodeKilledInMidTransfer) { KillAndCheck("decode", IsUnderWay); }

TEST_P(WorkerFaultTest, DecodeKilledInMidDecode) { KillAndCheck("decode", IsRunning); }

TEST_P(WorkerFaultTest, PrefillKilledInMidTransfer) { KillAndCheck("prefill", IsUnderWay); }

// What the dead had mapped, and what the living had mapped of the dead, goes back.
TEST_P(WorkerFaultTest, DeadWorkersLeaveNoDeviceMemoryInUse) {
  if (!GetParam().device_bytes_in_use) GTEST_SKIP() << "these workers use host memory alone";
  std::vector<std::uint64_t> in_use;
  for (int round = 0; round < 4; ++round) {
    ASSERT_NO_FATAL_FAILURE(KillAndCheck(round % 2 == 0 ? "prefill" : "decode", IsUnderWay));
    ExpectUndisturbedRun();  // the new worker allocates what it works with
    if (round % 2 == 0) continue;
    const absl::StatusOr<std::uint64_t> bytes = GetParam().device_bytes_in_use();
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    in_use.push_back(*bytes);
  }
  RecordProperty("device_bytes_in_use_before", std::to_string(in_use.front()));
  RecordProperty("device_bytes_in_use_after", std::to_string(in_use.back()));
  EXPECT_LE(in_use.back(), in_use.front() + kDeviceSlack);
}

}  // namespace kvferry::testing
