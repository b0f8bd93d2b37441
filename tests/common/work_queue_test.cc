#include "common/work_queue.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/fake_clock.h"

namespace kvferry {
namespace {

using ::testing::ElementsAre;

TEST(WorkQueue, RunsWhatIsDueInOrder) {
  FakeClock clock;
  const auto queue = WorkQueue::Create(clock).value();
  std::vector<int> ran;
  queue->Push([&] { ran.push_back(3); }, absl::Seconds(2));
  queue->Push([&] { ran.push_back(1); });
  queue->Push([&] { ran.push_back(2); });
  EXPECT_TRUE(queue->RunDue());
  EXPECT_THAT(ran, ElementsAre(1, 2));
  EXPECT_EQ(queue->UntilNext(), absl::Seconds(2));
  clock.Advance(absl::Seconds(1));
  EXPECT_FALSE(queue->RunDue());
  clock.Advance(absl::Seconds(1));
  EXPECT_TRUE(queue->RunDue());
  EXPECT_THAT(ran, ElementsAre(1, 2, 3));
  EXPECT_EQ(queue->UntilNext(), absl::InfiniteDuration());
}

TEST(WorkQueue, WorkMayPushMoreAndACloseDropsTheRest) {
  FakeClock clock;
  const auto queue = WorkQueue::Create(clock).value();
  int ran = 0;
  queue->Push([&] { queue->Push([&] { ++ran; }); });
  queue->RunDue();
  EXPECT_EQ(ran, 0);
  queue->RunDue();
  EXPECT_EQ(ran, 1);
  queue->Push([&] { ++ran; });
  queue->Close();
  queue->Push([&] { ++ran; });
  EXPECT_FALSE(queue->RunDue());
  EXPECT_EQ(ran, 1);
}

}  // namespace
}  // namespace kvferry
