#pragma once

#include <optional>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

// Base of the tests that need a GPU: on a machine without one they skip and say so.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = GetDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *std::move(device);
    ASSERT_TRUE(UseDevice(0).ok());
    auto stream = Stream::Create();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_.emplace(*std::move(stream));
  }

  const DeviceInfo& device() const { return device_; }
  Stream& stream() { return *stream_; }

 private:
  DeviceInfo device_;
  std::optional<Stream> stream_;
};

}  // namespace kvferry::kernels
