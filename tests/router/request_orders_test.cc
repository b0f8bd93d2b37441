#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <random>
#include <utility>

#include "router/request.h"
#include "tests/router/request_text.h"

namespace kvferry::router {
namespace {

// Any order of events: every token once, in order, with its own value; one end; calls closed.
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
