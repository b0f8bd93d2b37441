#include "common/serial_worker.h"

#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvferry {
namespace {

TEST(SerialWorker, RunsInOrderOnItsThread) {
  std::vector<int> order;
  std::thread::id thread;
  SerialWorker worker;
  for (int i = 0; i < 3; ++i) {
    worker.Push([&, i] {
      order.push_back(i);
      thread = std::this_thread::get_id();
    });
  }
  worker.Stop();
  EXPECT_THAT(order, testing::ElementsAre(0, 1, 2));
  EXPECT_NE(thread, std::this_thread::get_id());
}

TEST(SerialWorker, StopRunsWhatWasPushedBeforeAndNothingAfter) {
  absl::Notification begun, go_on;
  int ran = 0;
  SerialWorker worker;
  worker.Push([&] {
    begun.Notify();
    go_on.WaitForNotification();
    ++ran;
  });
  worker.Push([&] { ++ran; });
  begun.WaitForNotification();
  std::thread stopper([&] { worker.Stop(); });
  go_on.Notify();
  stopper.join();
  EXPECT_EQ(ran, 2);
  worker.Push([&] { ++ran; });
  worker.Stop();
  EXPECT_EQ(ran, 2);
}

}  // namespace
}  // namespace kvferry
