#include "common/device_name.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvferry {
namespace {

TEST(DeviceNameTest, NamesOfCpusAndGpus) {
  EXPECT_EQ(GpuOrdinal("cpu").value(), std::nullopt);
  EXPECT_EQ(GpuOrdinal("cuda:0").value(), 0);
  EXPECT_EQ(GpuOrdinal("cuda:13").value(), 13);
}

TEST(DeviceNameTest, AnotherNameIsShown) {
  for (const char* name : {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:128", "CPU"}) {
    const absl::Status status = GpuOrdinal(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(status.message(),
              absl::StrCat("device is \"", name, "\"; allowed is \"cpu\" or \"cuda:N\""));
  }
}

}  // namespace
}  // namespace kvferry
