#include "common/device_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace kvferry {
namespace {

using ::testing::HasSubstr;

class DeviceWatchTest : public ::testing::Test {
 protected:
  absl::Status device_;  // what a look at the device says
  int looks_ = 0;
  std::vector<absl::Status> lost_;
  DeviceWatch watch_{[this] {
                       ++looks_;
                       return device_;
                     },
                     [this](const absl::Status& why) { lost_.push_back(why); }};
};

TEST_F(DeviceWatchTest, AnErrorOfTheWorkStaysWhatItIs) {
  const absl::Status error = absl::InvalidArgumentError("token 3 is not a number");
  EXPECT_EQ(watch_.Explain(error), error);
  EXPECT_EQ(looks_, 1);
  EXPECT_TRUE(lost_.empty());
}

TEST_F(DeviceWatchTest, SuccessIsNotLookedInto) {
  device_ = absl::InternalError("gone");
  EXPECT_TRUE(watch_.Explain(absl::OkStatus()).ok());
  EXPECT_EQ(looks_, 0);
}

TEST_F(DeviceWatchTest, ALostDeviceIsToldOnceAndMakesErrorsUnavailable) {
  device_ = absl::InternalError("illegal address");
  const absl::Status first = watch_.Explain(absl::InternalError("decode step"));
  EXPECT_EQ(first.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(first.message()), HasSubstr("illegal address"));
  EXPECT_THAT(std::string(first.message()), HasSubstr("decode step"));
  EXPECT_EQ(watch_.Explain(absl::InternalError("a flush")), first);
  ASSERT_EQ(lost_.size(), 1u);
  EXPECT_EQ(lost_.front(), first);
}

TEST_F(DeviceWatchTest, WithoutADeviceNothingIsLost) {
  DeviceWatch none({}, {});
  const absl::Status error = absl::InternalError("decode step");
  EXPECT_EQ(none.Explain(error), error);
}

}  // namespace
}  // namespace kvferry
