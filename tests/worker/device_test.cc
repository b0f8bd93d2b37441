#include "worker/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace kvferry::worker {
namespace {

TEST(OpenDevice, OnCpusThereIsNothingToOpen) {
  const auto device = OpenDevice("cpu", false);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_FALSE(device->gpu.has_value());
  EXPECT_EQ(device->model_stream, nullptr);
  EXPECT_EQ(device->memory, nullptr);
  EXPECT_FALSE(ContextCheck(*device)) << "there is no context that could be lost";
}

TEST(OpenDevice, PayloadsLieOnlyWhereTheModelIs) {
  const absl::Status status = OpenDevice("cpu", true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("model.device is \"cpu\""));
}

TEST(OpenDevice, NamesThatAreNoDeviceAreRefused) {
  for (const char* name : {"gpu", "cuda:", "cuda:x", "cuda:-1"}) {
    EXPECT_EQ(OpenDevice(name, false).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(OpenDevice, AGpuThatIsNotThereIsRefused) {
  const absl::Status status = OpenDevice("cuda:99", false).status();
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsUnimplemented(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              testing::AnyOf(testing::HasSubstr("GPU"), testing::HasSubstr("CUDA")));
}

}  // namespace
}  // namespace kvferry::worker
