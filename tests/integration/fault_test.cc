#include <signal.h>

#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/cluster.h"

// Router, two prefill and two decode workers, each on a host of its own, with the real model, while
// hosts die, stop and lose their cable: no request fails, no token is repeated or missing, and with
// the fp16 codec the answer is that of a fault-free run.
namespace kvferry::testing {
namespace {

constexpr int kStreams = 4;
constexpr int kTokens = 48;

std::string Prompt(int stream) {
  std::string text = absl::StrCat("Notes of meeting number ", stream, ".\n");
  for (int line = 0; line < 40; ++line) {
    absl::StrAppend(&text, "Item ", line, ": the ferry leaves the harbour at ",
                    (line * 7 + stream) % 24, " o'clock with ", line * 3 + stream,
                    " passengers.\n");
  }
  return absl::StrCat(text, "Summary: The ferry");
}

class FaultTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ClusterOptions options;
    options.prefill_workers = 2;
    options.decode_workers = 2;
    options.namespaces = true;
    auto cluster = Cluster::Start(options);
    if (absl::IsPermissionDenied(cluster.status())) return;
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = cluster->release();
    for (int stream = 0; stream < kStreams; ++stream) {
      expected_[stream] = cluster_->Generate(GreedyRequest(Prompt(stream), kTokens)).ids;
      ASSERT_EQ(expected_[stream].size(), static_cast<std::size_t>(kTokens));
    }
  }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void SetUp() override {
    if (cluster_ == nullptr) GTEST_SKIP() << "needs root for network namespaces";
    ASSERT_TRUE(AllAttached().ok());
  }

  static absl::Status AllAttached() {
    return cluster_->AwaitRouter(absl::Seconds(30), [](const v1::GetStateResponse& state) {
      return state.workers_size() == 4;
    });
  }

  // Runs all streams; calls `fault` once, when `after_tokens` tokens have arrived in all. Then
  // checks every promise.
  void RunWithFault(int after_tokens, const std::function<void()>& fault) {
    std::atomic<int> seen = 0;
    std::promise<void> reached;
    std::vector<std::future<Answer>> answers;
    for (int stream = 0; stream < kStreams; ++stream) {
      answers.push_back(std::async(std::launch::async, [&, stream] {
        return cluster_->Generate(GreedyRequest(Prompt(stream), kTokens),
                                  [&](const v1::GenerateEvent& event) {
                                    const int now = event.has_tokens() ? event.tokens().ids_size()
                                                    : event.has_started() ? 0
                                                                          : -1;
                                    if (now >= 0) {
                                      const int before = seen.fetch_add(now);
                                      if (before <= after_tokens && before + now >= after_tokens &&
                                          !fired_.exchange(true))
                                        reached.set_value();
                                    }
                                    return true;
                                  });
      }));
    }
    ASSERT_EQ(reached.get_future().wait_for(std::chrono::seconds(120)), std::future_status::ready);
    fault();
    for (int stream = 0; stream < kStreams; ++stream) {
      const Answer answer = answers[stream].get();
      EXPECT_TRUE(answer.status.ok()) << "stream " << stream << ": " << answer.status;
      EXPECT_TRUE(answer.contiguous) << "stream " << stream << " has a repeated or missing token";
      EXPECT_EQ(answer.ids, expected_[stream])
          << "stream " << stream << ", attempts " << answer.finished.attempts();
    }
  }

  static Cluster* cluster_;
  static std::vector<std::int32_t> expected_[kStreams];
  std::atomic<bool> fired_ = false;
};

Cluster* FaultTest::cluster_ = nullptr;
std::vector<std::int32_t> FaultTest::expected_[kStreams];

// How long until the router has dropped a worker.
absl::Duration TimeUntilDropped(Cluster& cluster, const std::string& name) {
  const absl::Time begin = absl::Now();
  const absl::Status dropped =
      cluster.AwaitRouter(absl::Seconds(10), [&](const v1::GetStateResponse& state) {
        return std::none_of(state.workers().begin(), state.workers().end(),
                            [&](const v1::WorkerState& w) { return w.name() == name; });
      });
  return dropped.ok() ? absl::Now() - begin : absl::InfiniteDuration();
}

TEST_F(FaultTest, KilledDecodeLosesNoToken) {
  RunWithFault(20, [] {
    cluster_->Signal("decode-0", SIGKILL);
    EXPECT_LT(TimeUntilDropped(*cluster_, "decode-0"), absl::Seconds(2));
  });
  ASSERT_TRUE(cluster_->Restart("decode-0").ok());
  ASSERT_TRUE(AllAttached().ok());
  EXPECT_TRUE(cluster_->AwaitAllFree(absl::Seconds(10)).ok());
}

TEST_F(FaultTest, KilledPrefillLosesNoRequest) {
  RunWithFault(0, [] {
    cluster_->Signal("prefill-0", SIGKILL);
    EXPECT_LT(TimeUntilDropped(*cluster_, "prefill-0"), absl::Seconds(2));
  });
  ASSERT_TRUE(cluster_->Restart("prefill-0").ok());
  ASSERT_TRUE(AllAttached().ok());
  EXPECT_TRUE(cluster_->AwaitAllFree(absl::Seconds(10)).ok());
}

TEST_F(FaultTest, StoppedDecodeIsNoticedAndRejoins) {
  RunWithFault(20, [] {
    cluster_->Signal("decode-1", SIGSTOP);
    EXPECT_LT(TimeUntilDropped(*cluster_, "decode-1"), absl::Seconds(2));
  });
  cluster_->Signal("decode-1", SIGCONT);
  ASSERT_TRUE(AllAttached().ok());
  const absl::Status free = cluster_->AwaitAllFree(absl::Seconds(10));
  EXPECT_TRUE(free.ok()) << free;
}

TEST_F(FaultTest, StoppedPrefillIsNoticedAndRejoins) {
  RunWithFault(0, [] {
    cluster_->Signal("prefill-1", SIGSTOP);
    EXPECT_LT(TimeUntilDropped(*cluster_, "prefill-1"), absl::Seconds(2));
  });
  cluster_->Signal("prefill-1", SIGCONT);
  ASSERT_TRUE(AllAttached().ok());
  const absl::Status free = cluster_->AwaitAllFree(absl::Seconds(10));
  EXPECT_TRUE(free.ok()) << free;
}

TEST_F(FaultTest, PartitionedDecodeIsNoticedAndRejoins) {
  RunWithFault(20, [] {
    ASSERT_TRUE(cluster_->network()->SetLink("decode-0", false).ok());
    EXPECT_LT(TimeUntilDropped(*cluster_, "decode-0"), absl::Seconds(2));
  });
  ASSERT_TRUE(cluster_->network()->SetLink("decode-0", true).ok());
  ASSERT_TRUE(AllAttached().ok());
  const absl::Status free = cluster_->AwaitAllFree(absl::Seconds(10));
  EXPECT_TRUE(free.ok()) << free;
}

TEST_F(FaultTest, PartitionedPrefillIsNoticedAndRejoins) {
  RunWithFault(0, [] {
    ASSERT_TRUE(cluster_->network()->SetLink("prefill-0", false).ok());
    EXPECT_LT(TimeUntilDropped(*cluster_, "prefill-0"), absl::Seconds(2));
  });
  ASSERT_TRUE(cluster_->network()->SetLink("prefill-0", true).ok());
  ASSERT_TRUE(AllAttached().ok());
  const absl::Status free = cluster_->AwaitAllFree(absl::Seconds(10));
  EXPECT_TRUE(free.ok()) << free;
}

// With one side gone altogether, requests wait until it comes back.
TEST_F(FaultTest, RequestsWaitForTheOnlyKindOfWorkerToComeBack) {
  RunWithFault(30, [] {
    cluster_->Signal("decode-0", SIGKILL);
    cluster_->Signal("decode-1", SIGKILL);
    EXPECT_LT(TimeUntilDropped(*cluster_, "decode-0"), absl::Seconds(2));
    EXPECT_LT(TimeUntilDropped(*cluster_, "decode-1"), absl::Seconds(2));
    EXPECT_TRUE(cluster_->Restart("decode-1").ok());
  });
  ASSERT_TRUE(cluster_->Restart("decode-0").ok());
  ASSERT_TRUE(AllAttached().ok());
  EXPECT_TRUE(cluster_->AwaitAllFree(absl::Seconds(10)).ok());
}

}  // namespace
}  // namespace kvferry::testing
