#include "router/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/router/request_text.h"

namespace kvferry::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Incarnation kDecode{1}, kPrefill{2}, kDecode2{3}, kPrefill2{4}, kStranger{9};

template <typename A>
A Get(const Request::Actions& actions) {
  for (const Request::Action& action : actions) {
    if (const A* found = std::get_if<A>(&action)) return *found;
  }
  ADD_FAILURE() << "no such action in: " << Text(actions);
  return A{};
}

class RequestTest : public testing::Test {
 protected:
  // Prompt of three tokens: the first generated one has position 3.
  static Request::Spec Spec() {
    return {.prompt = {100, 101, 102}, .max_new_tokens = 4, .stop_tokens = {99, 50}};
  }
  void Start(Request::Spec spec = Spec()) {
    request_.emplace(std::move(spec),
                     Request::Limits{.max_attempts = 3, .queue_limit = absl::Seconds(60)});
    EXPECT_EQ(Text(request_->Start(now_)), "Q");
  }
  void Reserve(Route route = {kDecode, kPrefill}) {
    EXPECT_EQ(Text(request_->OnRoute(route, now_)), "R");
  }
  void Run(Route route = {kDecode, kPrefill}) {
    Reserve(route);
    EXPECT_EQ(Text(request_->OnReserved(serial(), now_)), "O");
  }
  RouteSerial serial() const { return request_->serial(); }
  Request& r() { return *request_; }

  MonoTime now_ = absl::Seconds(1000);
  std::optional<Request> request_;
};

TEST_F(RequestTest, RunsToTheLastToken) {
  Start();
  const auto reserve = Get<Request::Reserve>(r().OnRoute({kDecode, kPrefill}, now_));
  EXPECT_EQ(reserve.epoch, 1u);
  EXPECT_EQ(reserve.prompt_tokens, 3u);
  EXPECT_EQ(reserve.max_new_tokens, 4u);
  const auto open = Get<Request::OpenCalls>(r().OnReserved(serial(), now_));
  EXPECT_EQ(open.epoch, 1u);
  EXPECT_EQ(open.max_new_tokens, 4u);
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 7, now_)), "7");
  EXPECT_EQ(Text(r().OnAdopted(serial(), 7, now_)), "") << "known already";
  EXPECT_EQ(Text(r().OnCommitted(serial())), "");
  EXPECT_EQ(Text(r().OnPrefillEnded(serial(), absl::OkStatus(), now_)), "");
  EXPECT_EQ(Text(r().OnToken(serial(), 4, 8, now_)), "8");
  EXPECT_EQ(Text(r().OnToken(serial(), 5, 9, now_)), "9");
  EXPECT_EQ(Text(r().OnToken(serial(), 6, 10, now_)), "10 C Flength");
  EXPECT_EQ(r().attempts(), 1u);
  EXPECT_EQ(Text(r().OnDecodeFinished(serial(), false, now_)), "") << "over is over";
}

TEST_F(RequestTest, AdoptedMayTellTheFirstTokenBeforePrefillDoes) {
  Start();
  Run();
  EXPECT_EQ(Text(r().OnAdopted(serial(), 7, now_)), "7");
  EXPECT_EQ(Text(r().OnToken(serial(), 4, 8, now_)), "8");
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 7, now_)), "");
}

TEST_F(RequestTest, OneTokenNeedsNoDecodeStep) {
  Request::Spec spec = Spec();
  spec.max_new_tokens = 1;
  Start(spec);
  Run();
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 7, now_)), "7 C Flength");
}

TEST_F(RequestTest, StopTokensEndTheAnswerAndAreNotText) {
  Start();
  Run();
  EXPECT_TRUE(Get<Request::Emit>(r().OnFirstToken(serial(), 7, now_)).in_text);
  const Request::Actions actions = r().OnToken(serial(), 4, 50, now_);
  EXPECT_EQ(Text(actions), "50 C Fstop");
  EXPECT_FALSE(Get<Request::Emit>(actions).in_text);
}

TEST_F(RequestTest, AStopTokenMayBeTheFirst) {
  Start();
  Run();
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 99, now_)), "99 C Fstop");
}

TEST_F(RequestTest, StopTextEndsTheAnswer) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnStopText()), "C Fstop");
  EXPECT_EQ(Text(r().OnStopText()), "");
}

TEST_F(RequestTest, AWorkersOwnStopIsBelieved) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnDecodeFinished(serial(), true, now_)), "C Fstop");
}

// -- Recovery.

TEST_F(RequestTest, LostDecodeWhileReserving) {
  Start();
  Reserve();
  const Request::Actions actions = r().OnWorkerLost(kDecode, absl::UnavailableError("x"), now_);
  EXPECT_EQ(Text(actions), "C Q");
  EXPECT_EQ(Get<Request::Enqueue>(actions).not_before, now_) << "known to be gone: no pause";
  EXPECT_THAT(r().route_request().avoid, ElementsAre(kDecode));
  Run({kDecode2, kPrefill});
  EXPECT_EQ(r().attempts(), 2u);
}

TEST_F(RequestTest, LostPrefillWhileReserving) {
  Start();
  Reserve();
  EXPECT_EQ(Text(r().OnWorkerLost(kPrefill, absl::UnavailableError("x"), now_)), "C Q");
}

TEST_F(RequestTest, LostPrefillBeforeTheFirstToken) {
  Start();
  Run();
  EXPECT_EQ(Text(r().OnWorkerLost(kPrefill, absl::UnavailableError("x"), now_)), "C Q");
  const auto reserve = Get<Request::Reserve>(r().OnRoute({kDecode, kPrefill2}, now_));
  EXPECT_EQ(reserve.epoch, 2u);
  EXPECT_EQ(reserve.prompt_tokens, 3u);
}

TEST_F(RequestTest, LostPrefillAfterTheFirstTokenGoesOnFromThere) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnWorkerLost(kPrefill, absl::UnavailableError("x"), now_)), "C Q");
  const auto reserve = Get<Request::Reserve>(r().OnRoute({kDecode, kPrefill2}, now_));
  EXPECT_EQ(reserve.prompt_tokens, 4u);
  EXPECT_EQ(reserve.max_new_tokens, 3u);
  EXPECT_THAT(r().tokens(), ElementsAre(100, 101, 102, 7));
  r().OnReserved(serial(), now_);
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 8, now_)), "8") << "of this attempt: position 4";
  EXPECT_EQ(r().prompt_tokens(), 3u);
}

TEST_F(RequestTest, LostPrefillAfterAdoptionIsNoLoss) {
  Start();
  Run();
  r().OnAdopted(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnWorkerLost(kPrefill, absl::UnavailableError("x"), now_)), "");
  EXPECT_EQ(Text(r().OnPrefillEnded(serial(), absl::UnavailableError("x"), now_)), "");
  EXPECT_EQ(Text(r().OnToken(serial(), 4, 8, now_)), "8");
}

TEST_F(RequestTest, LostDecodeAfterSomeTokens) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  r().OnToken(serial(), 4, 8, now_);
  const RouteSerial old = serial();
  EXPECT_EQ(Text(r().OnWorkerLost(kDecode, absl::UnavailableError("x"), now_)), "C Q");
  Run({kDecode2, kPrefill});
  EXPECT_EQ(Text(r().OnToken(old, 5, 9, now_)), "") << "news of the old attempt";
  EXPECT_EQ(Text(r().OnDecodeEnded(old, absl::CancelledError(), now_)), "");
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 9, now_)), "9");
  EXPECT_EQ(Text(r().OnToken(serial(), 6, 10, now_)), "10 C Flength");
  EXPECT_EQ(r().attempts(), 2u);
}

TEST_F(RequestTest, ALostStrangerIsNoNews) {
  Start();
  EXPECT_EQ(Text(r().OnWorkerLost(kDecode, absl::UnavailableError("x"), now_)), "");
  Run();
  EXPECT_EQ(Text(r().OnWorkerLost(kStranger, absl::UnavailableError("x"), now_)), "");
}

TEST_F(RequestTest, BrokenStreamsAreTriedAgainAfterAPause) {
  const absl::StatusCode codes[] = {
      absl::StatusCode::kUnavailable, absl::StatusCode::kAborted,
      absl::StatusCode::kDataLoss,    absl::StatusCode::kCancelled,
      absl::StatusCode::kUnknown,     absl::StatusCode::kDeadlineExceeded,
      absl::StatusCode::kNotFound};
  for (const absl::StatusCode code : codes) {
    for (const bool decode : {false, true}) {
      Start();
      Run();
      const absl::Status status(code, "x");
      const Request::Actions actions = decode ? r().OnDecodeEnded(serial(), status, now_)
                                              : r().OnPrefillEnded(serial(), status, now_);
      EXPECT_EQ(Text(actions), "C Q") << status;
      EXPECT_GT(Get<Request::Enqueue>(actions).not_before, now_);
      EXPECT_THAT(r().route_request().avoid, ElementsAre(decode ? kDecode : kPrefill));
    }
  }
}

TEST_F(RequestTest, OtherCodesAreFinal) {
  const absl::StatusCode codes[] = {
      absl::StatusCode::kInvalidArgument,  absl::StatusCode::kFailedPrecondition,
      absl::StatusCode::kPermissionDenied, absl::StatusCode::kUnauthenticated,
      absl::StatusCode::kInternal,         absl::StatusCode::kUnimplemented};
  for (const absl::StatusCode code : codes) {
    const std::string expected = absl::StrCat("C X", absl::StatusCodeToString(code));
    const absl::Status status(code, "x");
    Start();
    Run();
    EXPECT_EQ(Text(r().OnDecodeEnded(serial(), status, now_)), expected);
    Start();
    Run();
    EXPECT_EQ(Text(r().OnPrefillEnded(serial(), status, now_)), expected);
    if (code == absl::StatusCode::kInvalidArgument) continue;
    Start();
    Reserve();
    EXPECT_EQ(Text(r().OnReserveFailed(serial(), status, now_)), expected);
  }
}

TEST_F(RequestTest, AttemptsAreLimited) {
  Start();
  for (int attempt = 1; attempt < 3; ++attempt) {
    Run();
    EXPECT_EQ(Text(r().OnDecodeEnded(serial(), absl::UnavailableError("gone"), now_)), "C Q");
  }
  Run();
  const Request::Actions actions =
      r().OnDecodeEnded(serial(), absl::UnavailableError("gone"), now_);
  EXPECT_EQ(Text(actions), "C XUNAVAILABLE");
  const std::string message(Get<Request::FailRequest>(actions).status.message());
  EXPECT_THAT(message, HasSubstr("3 attempts"));
  EXPECT_THAT(message, HasSubstr("gone"));
}

TEST_F(RequestTest, ReservationsThatFailCountAsAttempts) {
  Start();
  for (int attempt = 1; attempt < 3; ++attempt) {
    Reserve();
    EXPECT_EQ(Text(r().OnReserveFailed(serial(), absl::UnavailableError("gone"), now_)), "C Q");
  }
  Reserve();
  EXPECT_EQ(Text(r().OnReserveFailed(serial(), absl::UnavailableError("gone"), now_)),
            "C XUNAVAILABLE");
}

TEST_F(RequestTest, StreamsThatEndEarlyAreFaults) {
  Start();
  Run();
  EXPECT_EQ(Text(r().OnPrefillEnded(serial(), absl::OkStatus(), now_)), "C Q")
      << "without a commit";
  Run();
  r().OnFirstToken(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnDecodeEnded(serial(), absl::OkStatus(), now_)), "C Q");
  Run();
  EXPECT_EQ(Text(r().OnDecodeFinished(serial(), false, now_)), "C XUNAVAILABLE");
}

// -- Positions.

TEST_F(RequestTest, TheSameTokenTwiceIsEmittedOnce) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  r().OnToken(serial(), 4, 8, now_);
  EXPECT_EQ(Text(r().OnToken(serial(), 4, 8, now_)), "");
  EXPECT_EQ(Text(r().OnToken(serial(), 5, 9, now_)), "9");
}

TEST_F(RequestTest, AGapRestartsTheAttempt) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnToken(serial(), 5, 9, now_)), "C Q");
  EXPECT_THAT(r().route_request().avoid, ElementsAre(kDecode));
  EXPECT_THAT(r().tokens(), ElementsAre(100, 101, 102, 7));
}

TEST_F(RequestTest, AContradictionRestartsTheAttempt) {
  Start();
  Run();
  r().OnFirstToken(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnAdopted(serial(), 8, now_)), "C Q");
  Run();
  EXPECT_EQ(Text(r().OnToken(serial(), 2, 102, now_)), "C Q") << "a token of the prompt";
}

TEST_F(RequestTest, DecodeTokensBeforeAdoptionAreAGap) {
  Start();
  Run();
  EXPECT_EQ(Text(r().OnToken(serial(), 4, 8, now_)), "C Q");
}

// -- Waiting.

TEST_F(RequestTest, ARefusalWithAHintWaitsAndCountsAsNoAttempt) {
  Start();
  for (int i = 0; i < 20; ++i) {
    Reserve();
    const Request::Actions actions =
        r().OnReserveFailed(serial(), Full(absl::Milliseconds(200)), now_);
    EXPECT_EQ(Text(actions), "C B Q");
    const auto refused = Get<Request::Refused>(actions);
    EXPECT_EQ(refused.worker, kDecode);
    EXPECT_EQ(refused.until, now_ + absl::Milliseconds(200));
  }
  EXPECT_EQ(r().attempts(), 0u);
  Run();
  EXPECT_EQ(r().attempts(), 1u);
  const Request::Actions actions =
      r().OnPrefillEnded(serial(), Full(absl::Milliseconds(250)), now_);
  EXPECT_EQ(Text(actions), "C B Q");
  EXPECT_EQ(Get<Request::Refused>(actions).worker, kPrefill);
  EXPECT_EQ(r().attempts(), 0u);
}

TEST_F(RequestTest, WhatCanNeverFitGoesElsewhere) {
  for (const absl::Status& status :
       {absl::ResourceExhaustedError("no hint"), absl::InvalidArgumentError("pool too small")}) {
    Start();
    Reserve();
    EXPECT_EQ(Text(r().OnReserveFailed(serial(), status, now_)), "C Q");
    EXPECT_THAT(r().route_request().never, ElementsAre(kDecode));
    EXPECT_EQ(r().never_fits(), status);
    EXPECT_EQ(Text(r().OnHopeless(r().never_fits())),
              absl::StrCat("X", absl::StatusCodeToString(status.code())));
  }
}

TEST_F(RequestTest, TheQueueLimitCountsFromTheLastToken) {
  Start();
  now_ += absl::Seconds(50);
  Reserve();
  Request::Actions actions = r().OnReserveFailed(serial(), Full(absl::Seconds(1)), now_);
  EXPECT_EQ(Get<Request::Enqueue>(actions).deadline, now_ + absl::Seconds(10));
  Run();
  r().OnFirstToken(serial(), 7, now_);
  now_ += absl::Seconds(100);
  actions = r().OnWorkerLost(kDecode, absl::UnavailableError("x"), now_);
  EXPECT_EQ(Get<Request::Enqueue>(actions).deadline, now_ + absl::Seconds(60));
  EXPECT_EQ(Text(r().OnQueueTimeout(absl::UnavailableError("nobody"))), "XUNAVAILABLE");
}

TEST_F(RequestTest, QueueTimeoutAfterARouteIsNoNews) {
  Start();
  Reserve();
  EXPECT_EQ(Text(r().OnQueueTimeout(absl::UnavailableError("nobody"))), "");
}

// -- Cancel.

TEST_F(RequestTest, CancelAtEveryState) {
  Start();
  EXPECT_EQ(Text(r().OnCancel()), "Fcancelled");
  EXPECT_EQ(Text(r().OnCancel()), "");
  EXPECT_EQ(Text(r().OnRoute({kDecode, kPrefill}, now_)), "");

  Start();
  Reserve();
  const RouteSerial reserving = serial();
  EXPECT_EQ(Text(r().OnCancel()), "C Fcancelled");
  EXPECT_EQ(Text(r().OnReserved(reserving, now_)), "") << "the caller releases the grant";

  Start();
  Run();
  EXPECT_EQ(Text(r().OnCancel()), "C Fcancelled");
  EXPECT_EQ(Text(r().OnFirstToken(serial(), 7, now_)), "");

  Start();
  Run();
  r().OnAdopted(serial(), 7, now_);
  EXPECT_EQ(Text(r().OnAbandon(absl::DeadlineExceededError("late"))), "C XDEADLINE_EXCEEDED");
  EXPECT_EQ(Text(r().OnToken(serial(), 4, 8, now_)), "");
}

TEST_F(RequestTest, StateNames) {
  Start();
  EXPECT_EQ(r().state_name(), "WAITING");
  Reserve();
  EXPECT_EQ(r().state_name(), "RESERVING");
  r().OnReserved(serial(), now_);
  EXPECT_EQ(r().state_name(), "PREFILLING");
  r().OnAdopted(serial(), 7, now_);
  EXPECT_EQ(r().state_name(), "DECODING");
  r().OnCancel();
  EXPECT_EQ(r().state_name(), "FINISHED");
}

}  // namespace
}  // namespace kvferry::router
