// Workers that crash, hang, refuse and lie: the client's stream has every token once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router/node_fixture.h"

namespace kvferry::router {
namespace {

using ::testing::HasSubstr;

class RecoveryTest : public NodeFixture {
 protected:
  void SetUp() override { StartRouter(); }
  bool Running(int tokens) {
    const v1::GetStateResponse state = State();
    const auto found = state.counters().find("kvferry_router_tokens_total");
    return found != state.counters().end() && found->second >= static_cast<std::uint64_t>(tokens);
  }
};

grpc::Status Full(absl::Duration after) {
  absl::Status status = absl::ResourceExhaustedError("no pages");
  rpc::SetRetryHint(status, after);
  return rpc::ToGrpc(status);
}

TEST_F(RecoveryTest, PrefillCrashesBeforeTheFirstToken) {
  const auto decode = Decode("d0");
  auto first = Prefill("p0");
  AwaitWorkers(2);
  first->hang_before_first_token = true;
  Answer& answer = GenerateSoon(Request(10));
  ASSERT_TRUE(Eventually([&] { return first->running() == 1; }));
  const auto second = Prefill("p1");
  AwaitWorkers(3);
  first->Crash();
  JoinClients();
  ExpectTrue(answer, 10);
  EXPECT_EQ(answer.finished.attempts(), 2u);
  EXPECT_EQ(answer.finished.prefill_worker(), "p1");
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
}

TEST_F(RecoveryTest, PrefillCrashesAfterTheFirstToken) {
  const auto decode = Decode("d0");
  auto first = Prefill("p0");
  AwaitWorkers(2);
  first->hang_before_commit = true;
  Answer& answer = GenerateSoon(Request(10));
  ASSERT_TRUE(Eventually([&] { return Running(1); }));
  const auto second = Prefill("p1");
  AwaitWorkers(3);
  first->Crash();
  JoinClients();
  ExpectTrue(answer, 10);
  const v1::RunRequest rerun = decode->run_requests().back();
  EXPECT_EQ(rerun.tokens_size(), kPromptTokens + 1);
  EXPECT_EQ(rerun.max_new_tokens(), 9u);
  EXPECT_EQ(rerun.penalty_from(), static_cast<std::uint32_t>(kPromptTokens));
  EXPECT_EQ(rerun.epoch(), 2u);
  EXPECT_EQ(rerun.sampling().seed(), decode->run_requests().front().sampling().seed());
}

TEST_F(RecoveryTest, DecodeCrashesAfterSomeTokens) {
  auto first = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  first->token_limit = 6;
  Answer& answer = GenerateSoon(Request(20));
  ASSERT_TRUE(Eventually([&] { return Running(7); }));
  const auto second = Decode("d1");
  AwaitWorkers(3);
  first->Crash();
  JoinClients();
  ExpectTrue(answer, 20);
  EXPECT_EQ(answer.finished.decode_worker(), "d1");
  EXPECT_EQ(second->run_requests().front().tokens_size(), kPromptTokens + 7);
}

TEST_F(RecoveryTest, AStoppedDecodeIsNoticedAndRejoinsAndIsToldToRelease) {
  const auto first = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  first->token_limit = 6;
  Answer& answer = GenerateSoon(Request(20));
  ASSERT_TRUE(Eventually([&] { return Running(7); }));
  const auto second = Decode("d1");
  AwaitWorkers(3);
  first->Freeze();
  const absl::Time begin = absl::Now();
  ASSERT_TRUE(Eventually([&] { return State().workers_size() == 2; }));
  EXPECT_LT(absl::Now() - begin, 2.5 * kSilenceLimit);
  JoinClients();
  ExpectTrue(answer, 20);
  first->Thaw();
  AwaitWorkers(3);
  EXPECT_TRUE(Eventually([&] { return first->releases_told().size() == 1; }));
  EXPECT_TRUE(Eventually([&] { return first->held() == 0; }));
}

TEST_F(RecoveryTest, TheOnlyWorkersStopAndComeBack) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->token_limit = 6;
  Answer& answer = GenerateSoon(Request(20));
  ASSERT_TRUE(Eventually([&] { return Running(7); }));
  decode->Freeze();
  prefill->Freeze();
  ASSERT_TRUE(Eventually([&] { return State().workers_size() == 0; }));
  EXPECT_EQ(State().queued_requests(), 1u);
  decode->token_limit = 1000;
  decode->Thaw();
  prefill->Thaw();
  JoinClients();
  ExpectTrue(answer, 20);
}

TEST_F(RecoveryTest, AHangingEngineLosesItsRequestsButNotItsPlace) {
  const auto first = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  first->token_limit = 3;
  Answer& answer = GenerateSoon(Request(10));
  ASSERT_TRUE(Eventually([&] { return Running(4); }));
  const auto second = Decode("d1");
  AwaitWorkers(3);
  v1::Load stalled;
  stalled.set_total_pages(1);
  stalled.mutable_engine_stall()->set_seconds(21);
  first->SetLoad(stalled);
  JoinClients();
  ExpectTrue(answer, 10);
  EXPECT_EQ(answer.finished.decode_worker(), "d1");
  EXPECT_EQ(State().workers_size(), 3);
}

TEST_F(RecoveryTest, BrokenAndLyingStreamsAreTriedAgain) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  decode->skip_token = 4;  // a gap
  Answer answer = Generate(Request(12));
  ExpectTrue(answer, 12);
  EXPECT_EQ(answer.finished.attempts(), 2u);
  decode->repeat_tokens = true;
  answer = Generate(Request(12));
  ExpectTrue(answer, 12);
  EXPECT_EQ(answer.finished.attempts(), 1u);
  decode->repeat_tokens = false;
  decode->break_after = 5;  // each attempt gets a little further
  answer = Generate(Request(20));
  ExpectTrue(answer, 20);
  EXPECT_EQ(answer.finished.attempts(), 4u);
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
}

TEST_F(RecoveryTest, GivesUpAfterTheLastAttempt) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  node_->Shutdown();
  StartRouter([](v1::RouterConfig& config) { config.set_max_attempts(2); });
  const auto decode2 = Decode("d1");
  const auto prefill2 = Prefill("p1");
  AwaitWorkers(2);
  decode2->break_after = 0;
  const Answer answer = Generate(Request(20));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("2 attempts"));
}

TEST_F(RecoveryTest, FinalErrorsReachTheClientAtOnce) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  AwaitWorkers(2);
  prefill->on_run = [] {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "other codec tables");
  };
  const Answer answer = Generate(Request(20));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("other codec tables"));
  EXPECT_EQ(prefill->runs(), 1);
  EXPECT_TRUE(Eventually([&] { return decode->held() == 0; }));
}

TEST_F(RecoveryTest, AFullWorkerIsAskedAgainOrAnotherIs) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  std::atomic<int> refusals = 3;
  decode->on_reserve = [&] {
    return refusals-- > 0 ? Full(absl::Milliseconds(30)) : grpc::Status::OK;
  };
  AwaitWorkers(2);
  Answer answer = Generate(Request(5));
  ExpectTrue(answer, 5);
  EXPECT_EQ(answer.finished.attempts(), 1u) << "a refusal is no attempt";
  EXPECT_EQ(decode->reservations(), 4);

  refusals = 1 << 30;
  const auto second = Decode("d1");
  AwaitWorkers(3);
  for (int i = 0; i < 4; ++i) ExpectTrue(Generate(Request(5)), 5);
  EXPECT_EQ(second->runs(), 4);
}

TEST_F(RecoveryTest, FirstComeFirstServedWhenFull) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  std::atomic<int> room = 0;
  decode->on_reserve = [&] {
    int left = room.load();
    while (left > 0 && !room.compare_exchange_weak(left, left - 1)) {
    }
    return left > 0 ? grpc::Status::OK : Full(absl::Milliseconds(20));
  };
  AwaitWorkers(2);
  constexpr int kRequests = 5;
  for (int i = 0; i < kRequests; ++i) {
    v1::GenerateRequest request = Request(3);
    request.set_request_id(absl::StrCat("r", i));
    GenerateSoon(request);
    ASSERT_TRUE(Eventually([&] {
      const v1::GetStateResponse state = State();
      return state.queued_requests() + state.running_requests() ==
             static_cast<std::uint32_t>(i + 1);
    }));
  }
  for (int i = 0; i < kRequests; ++i) {
    room = 1;
    ASSERT_TRUE(Eventually([&] { return decode->runs() == i + 1; }));
  }
  JoinClients();
  const std::vector<v1::RunRequest> runs = decode->run_requests();
  for (int i = 0; i < kRequests; ++i) EXPECT_EQ(runs[i].request_id(), absl::StrCat("r", i));
}

TEST_F(RecoveryTest, WhatNeverFitsFailsWithTheWorkersWords) {
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  decode->on_reserve = [] {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the whole pool has 3 rows");
  };
  AwaitWorkers(2);
  const Answer answer = Generate(Request(5));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("3 rows"));
}

class QueueTest : public NodeFixture {};

TEST_F(QueueTest, TheQueueIsBoundedInLengthAndTime) {
  StartRouter([](v1::RouterConfig& config) {
    config.set_max_queued_requests(2);
    config.mutable_queue_limit()->set_nanos(600'000'000);
  });
  const Answer& first = GenerateSoon(Request(1));
  const Answer& second = GenerateSoon(Request(1));
  ASSERT_TRUE(Eventually([&] { return State().queued_requests() == 2; }));
  const Answer refused = Generate(Request(1));
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("max_queued_requests"));
  EXPECT_TRUE(rpc::RetryHint(refused.status).has_value());
  JoinClients();
  for (const Answer* answer : {&first, &second}) {
    EXPECT_EQ(answer->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(answer->status.message()), HasSubstr("no decode worker"));
  }
}

TEST_F(QueueTest, AFullClusterIsToldAfterTheQueueLimit) {
  StartRouter(
      [](v1::RouterConfig& config) { config.mutable_queue_limit()->set_nanos(300'000'000); });
  const auto decode = Decode("d0");
  const auto prefill = Prefill("p0");
  decode->on_reserve = [] { return Full(absl::Milliseconds(50)); };
  AwaitWorkers(2);
  const Answer answer = Generate(Request(1));
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(rpc::RetryHint(answer.status).has_value());
}

}  // namespace
}  // namespace kvferry::router
