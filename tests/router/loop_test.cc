#include "router/loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/synchronization/notification.h"

namespace kvferry::router {
namespace {

using ::testing::ElementsAre;

TEST(LoopTest, RunsTasksInOrderOnOneThread) {
  Loop loop(Clock::Steady());
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) loop.Post([&order, i] { order.push_back(i); });
  ASSERT_TRUE(loop.Run([] {}));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(LoopTest, TimersRunByTimeAndCanBeCancelled) {
  Loop loop(Clock::Steady());
  std::vector<int> order;
  absl::Notification done;
  ASSERT_TRUE(loop.Run([&] {
    const MonoTime now = loop.Now();
    loop.At(now + absl::Milliseconds(20), [&] { order.push_back(2); });
    const auto gone = loop.At(now + absl::Milliseconds(10), [&] { order.push_back(0); });
    loop.At(now + absl::Milliseconds(5), [&, gone] {
      order.push_back(1);
      loop.CancelTimer(gone);
    });
    loop.At(now + absl::Milliseconds(20), [&] {
      order.push_back(3);
      done.Notify();
    });
  }));
  done.WaitForNotification();
  EXPECT_THAT(order, ElementsAre(1, 2, 3));
  loop.Run([&] { loop.CancelTimer(Loop::TimerId::kNone); });
}

TEST(LoopTest, ATimerOfThePastRunsAfterWhatWasPosted) {
  Loop loop(Clock::Steady());
  std::vector<int> order;
  absl::Notification done;
  loop.Run([&] {
    loop.At(-absl::InfiniteDuration(), [&] {
      order.push_back(2);
      done.Notify();
    });
    loop.Post([&] { order.push_back(1); });
  });
  done.WaitForNotification();
  EXPECT_THAT(order, ElementsAre(1, 2));
}

TEST(LoopTest, StopRunsWhatWasPostedAndDropsTheRest) {
  Loop loop(Clock::Steady());
  int ran = 0;
  for (int i = 0; i < 10; ++i) loop.Post([&] { ++ran; });
  loop.Stop();
  EXPECT_EQ(ran, 10);
  loop.Post([&] { ++ran; });
  EXPECT_FALSE(loop.Run([&] { ++ran; })) << "returns, although nothing runs it";
  loop.Stop();
  EXPECT_EQ(ran, 10);
}

}  // namespace
}  // namespace kvferry::router
