#include "router/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "rpc/status.h"

namespace kvferry::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Incarnation kDecode{1}, kPrefill{2}, kDecode2{3}, kPrefill2{4}, kStranger{9};

absl::Status Full(absl::Duration after) {
  absl::Status status = absl::ResourceExhaustedError("full");
  rpc::SetRetryHint(status, after);
  return status;
}

// One letter for each action, tokens by their id: "R" reserve, "O" open, "C" close, "Q" enqueue,
// "F" finish, "X" fail, "B" refused, "7" emit.
std::string Text(const Request::Actions& actions) {
  struct Letter {
    std::string operator()(const Request::Enqueue&) { return "Q"; }
    std::string operator()(const Request::Reserve&) { return "R"; }
    std::string operator()(const Request::OpenCalls&) { return "O"; }
    std::string operator()(const Request::CloseCalls&) { return "C"; }
    std::string operator()(const Request::Emit& emit) { return absl::StrCat(emit.id); }
    std::string operator()(const Request::Refused&) { return "B"; }
    std::string operator()(const Request::FinishRequest& finish) {
      return finish.end == Request::End::kStop     ? "Fstop"
             : finish.end == Request::End::kLength ? "Flength"
                                                   : "Fcancelled";
    }
    std::string operator()(const Request::FailRequest& fail) {
      return absl::StrCat("X", absl::StatusCodeToString(fail.status.code()));
    }
  };
  std::string text;
  for (const Request::Action& action : actions)
    absl::StrAppend(&text, text.empty() ? "" : " ", std::visit(Letter(), action));
  return text;
}

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

// -- Any order of events: every token once, in order, with its own value; one end; calls closed.

class World {
 public:
  explicit World(unsigned seed) : random_(seed) {
    Request::Spec spec{.prompt = {1, 2, 3}, .max_new_tokens = 12, .stop_tokens = {}};
    request_.emplace(std::move(spec), Request::Limits{.max_attempts = 40});
  }

  void Run() {
    Take(request_->Start(now_));
    for (int step = 0; step < 5000 && !ended_; ++step) Step();
    ASSERT_TRUE(ended_);
    EXPECT_FALSE(open_);
    // Whatever comes after the end changes nothing.
    for (int i = 0; i < 20; ++i) Step();
    if (finished_) {
      EXPECT_EQ(emitted_, 12u);
    }
    EXPECT_LE(emitted_, 12u);
  }

 private:
  int Pick(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }
  // The one true token of a position.
  static std::int32_t TokenAt(std::uint32_t position) {
    return static_cast<std::int32_t>(position * 31 + 7);
  }

  void Step() {
    now_ += absl::Milliseconds(10);
    RouteSerial serial = request_->serial();
    if (Pick(8) == 0) serial = RouteSerial{static_cast<std::uint32_t>(Pick(5))};
    const Incarnation worker{static_cast<std::uint64_t>(Pick(4) + 1)};
    const absl::Status trouble =
        Pick(2) == 0 ? absl::UnavailableError("x") : Full(absl::Seconds(1));
    const auto begin = attempt_begin_;
    const bool current = serial == request_->serial();
    switch (Pick(14)) {
      case 0:
      case 1:
        Take(request_->OnRoute({Incarnation{static_cast<std::uint64_t>(Pick(2) + 1)},
                                Incarnation{static_cast<std::uint64_t>(Pick(2) + 3)}},
                               now_));
        return;
      case 2:
      case 3:
        Take(request_->OnReserved(serial, now_));
        return;
      case 4:
        if (current) Take(request_->OnFirstToken(serial, TokenAt(begin), now_));
        return;
      case 5:
        if (current) {
          adopted_ = true;
          Take(request_->OnAdopted(serial, TokenAt(begin), now_));
        }
        return;
      case 6:
      case 7:
      case 8:
        // Mostly the next, sometimes one again or one too far.
        if (current && adopted_) {
          const std::uint32_t next = 3 + emitted_ + (Pick(10) == 0 ? Pick(4) - 2 : 0);
          Take(request_->OnToken(serial, next, TokenAt(next), now_));
        } else if (!current) {
          Take(request_->OnToken(serial, Pick(20), Pick(1000), now_));
        }
        return;
      case 9:
        if (Pick(3) == 0) Take(request_->OnWorkerLost(worker, absl::UnavailableError("x"), now_));
        return;
      case 10:
        if (Pick(4) == 0) Take(request_->OnDecodeEnded(serial, trouble, now_));
        return;
      case 11:
        if (Pick(4) == 0) Take(request_->OnPrefillEnded(serial, trouble, now_));
        return;
      case 12:
        Take(request_->OnReserveFailed(serial, trouble, now_));
        return;
      case 13:
        Take(request_->OnCommitted(serial));
        return;
    }
  }

  void Take(const Request::Actions& actions) {
    for (const Request::Action& action : actions) {
      ASSERT_FALSE(ended_) << "an action after the end: " << Text(actions);
      std::visit([this](const auto& what) { Do(what); }, action);
    }
  }
  void Do(const Request::Enqueue&) { EXPECT_FALSE(open_); }
  void Do(const Request::Reserve& reserve) {
    EXPECT_FALSE(std::exchange(open_, true));
    EXPECT_EQ(reserve.prompt_tokens, 3 + emitted_);
    EXPECT_EQ(reserve.max_new_tokens, 12 - emitted_);
    attempt_begin_ = reserve.prompt_tokens;
    adopted_ = false;
  }
  void Do(const Request::OpenCalls& calls) {
    EXPECT_TRUE(open_);
    EXPECT_EQ(calls.max_new_tokens, 12 - emitted_);
  }
  void Do(const Request::CloseCalls&) { EXPECT_TRUE(std::exchange(open_, false)); }
  void Do(const Request::Emit& emit) {
    EXPECT_EQ(emit.index, emitted_);
    EXPECT_EQ(emit.id, TokenAt(3 + emitted_));
    ++emitted_;
  }
  void Do(const Request::Refused&) { EXPECT_FALSE(open_); }
  void Do(const Request::FinishRequest&) { ended_ = finished_ = true; }
  void Do(const Request::FailRequest&) { ended_ = true; }

  std::mt19937 random_;
  MonoTime now_ = absl::Seconds(1);
  std::optional<Request> request_;
  std::uint32_t emitted_ = 0, attempt_begin_ = 3;
  bool open_ = false, adopted_ = false, ended_ = false, finished_ = false;
};

TEST(RequestWorldTest, EveryTokenOnceInAnyOrderOfEvents) {
  for (unsigned seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    World(seed).Run();
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvferry::router
