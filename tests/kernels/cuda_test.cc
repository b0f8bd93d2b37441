#include <cstring>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/stream.h"
#include "tests/kernels/gpu_test.h"

namespace kvferry::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string_view Message(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

// These two need no GPU.
TEST(CudaStatusTest, SaysWhatTheCallerCanDo) {
  EXPECT_TRUE(CudaStatus(cudaSuccess, "copy").ok());
  const absl::Status status = CudaStatus(cudaErrorMemoryAllocation, "pool of 3 bytes");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(Message(status)),
              AllOf(HasSubstr("pool of 3 bytes"), HasSubstr("cudaErrorMemoryAllocation")));
  EXPECT_EQ(CudaStatus(cudaErrorNoDevice, "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(CudaStatus(cudaErrorIllegalAddress, "x").code(), absl::StatusCode::kInternal);
}

TEST(DeviceTest, AMissingGpuIsNamed) {
  const auto device = GetDevice(DeviceCount() + 7);
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(Message(device.status())), HasSubstr("GPU"));
  EXPECT_FALSE(GetDevice(-1).ok());
}

using CudaTest = GpuTest;

TEST_F(CudaTest, DeviceIsDescribed) {
  EXPECT_GE(device().compute_capability, 80);
  EXPECT_GT(device().multiprocessors, 0);
  EXPECT_GT(device().l2_bytes, 0u);
  EXPECT_GE(device().shared_bytes_per_block, std::size_t{48} << 10);
}

TEST_F(CudaTest, BytesGoThereAndBack) {
  constexpr std::size_t kBytes = 12345;
  auto device = DeviceBuffer::Allocate(kBytes);
  ASSERT_TRUE(device.ok()) << device.status();
  auto pinned = PinnedBuffer::Allocate(kBytes);
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  for (std::size_t i = 0; i < kBytes; ++i) pinned->data()[i] = static_cast<std::byte>(i * 7);
  std::vector<std::byte> back(kBytes);
  ASSERT_TRUE(CopyAsync(device->data(), pinned->data(), kBytes, stream()).ok());
  ASSERT_TRUE(FillAsync(device->data() + 10, std::byte{0xee}, 5, stream()).ok());
  ASSERT_TRUE(CopyAsync(back.data(), device->data(), kBytes, stream()).ok());
  ASSERT_TRUE(stream().Synchronize().ok());
  std::memset(pinned->data() + 10, 0xee, 5);
  EXPECT_EQ(std::memcmp(back.data(), pinned->data(), kBytes), 0);
}

TEST_F(CudaTest, AStreamWaitsForAnEventOfAnother) {
  auto other = Stream::Create(-1);
  ASSERT_TRUE(other.ok()) << other.status();
  auto begin = Event::Create(true), end = Event::Create(true);
  ASSERT_TRUE(begin.ok() && end.ok());
  constexpr std::size_t kBytes = std::size_t{256} << 20;
  auto buffer = DeviceBuffer::Allocate(kBytes);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  ASSERT_TRUE(begin->Record(stream()).ok());
  ASSERT_TRUE(FillAsync(buffer->data(), std::byte{1}, kBytes, stream()).ok());
  ASSERT_TRUE(end->Record(stream()).ok());
  ASSERT_TRUE(other->Wait(*end).ok());
  ASSERT_TRUE(FillAsync(buffer->data() + kBytes - 1, std::byte{2}, 1, *other).ok());
  ASSERT_TRUE(other->Synchronize().ok());
  EXPECT_TRUE(*end->Reached());
  EXPECT_GT(*end->Since(*begin), absl::ZeroDuration());
  std::byte last{};
  ASSERT_TRUE(CopyAsync(&last, buffer->data() + kBytes - 1, 1, *other).ok());
  ASSERT_TRUE(other->Synchronize().ok());
  EXPECT_EQ(last, std::byte{2});
}

TEST_F(CudaTest, TooLargeABufferIsRefusedAndNothingIsLost) {
  const auto buffer = DeviceBuffer::Allocate(device().memory_bytes * 2);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(Message(buffer.status())), HasSubstr("free"));
  EXPECT_TRUE(LaunchStatus("nothing").ok());  // no error is left behind
}

TEST_F(CudaTest, BuffersMove) {
  auto first = DeviceBuffer::Allocate(100);
  ASSERT_TRUE(first.ok());
  const std::byte* at = first->data();
  DeviceBuffer second = *std::move(first);
  EXPECT_EQ(second.data(), at);
  EXPECT_EQ(second.bytes(), 100u);
  auto none = DeviceBuffer::Allocate(0);
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->data(), nullptr);
}

}  // namespace
}  // namespace kvferry::kernels
