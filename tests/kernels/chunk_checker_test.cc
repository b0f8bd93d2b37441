#include "kernels/chunk_checker.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "common/crc32c.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device_memory.h"
#include "tests/kernels/gpu_test.h"

namespace kvferry::kernels {
namespace {

class ChunkCheckerTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    memory_ = *CreateDeviceMemory(0);
    checker_ = *ChunkChecker::Create();
  }

  static std::vector<std::byte> RandomBytes(std::size_t bytes) {
    std::mt19937 random(static_cast<std::uint32_t>(bytes));
    std::vector<std::byte> out(bytes);
    for (std::byte& byte : out) byte = static_cast<std::byte>(random());
    return out;
  }
  DeviceMemory::Block Upload(const void* from, std::size_t bytes) {
    DeviceMemory::Block block = *memory_->Allocate(bytes);
    EXPECT_TRUE(memory_->Copy(block.get(), from, bytes).ok());
    return block;
  }

  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<ChunkChecker> checker_;
};

TEST_F(ChunkCheckerTest, ChecksAChunkOfAnySizeWhereItLies) {
  for (const std::size_t bytes : {1u, 16u, 17u, 4096u, 32769u, 1000001u, 8u << 20}) {
    const std::vector<std::byte> payload = RandomBytes(bytes);
    const DeviceMemory::Block chunk = Upload(payload.data(), bytes);
    const auto crc = checker_->Check({chunk.get(), bytes});
    ASSERT_TRUE(crc.ok()) << crc.status();
    EXPECT_EQ(*crc, Crc32c(payload)) << bytes;
    std::vector<std::byte> after(bytes);
    ASSERT_TRUE(memory_->Copy(after.data(), chunk.get(), bytes).ok());
    EXPECT_TRUE(after == payload) << bytes;
  }
  EXPECT_EQ(*checker_->Check({}), Crc32c({}));
}

TEST_F(ChunkCheckerTest, AdoptsInTheSameReading) {
  constexpr std::size_t kPage = 4864, kPages = 9, kBytes = kPages * kPage - 100;
  const std::vector<std::byte> payload = RandomBytes(kBytes);
  const DeviceMemory::Block chunk = Upload(payload.data(), kBytes);
  const DeviceMemory::Block pool = *memory_->Allocate(kPages * kPage);
  std::vector<std::byte*> pages;
  for (std::size_t i = 0; i < kPages; ++i) pages.push_back(pool.get() + i * kPage);
  const DeviceMemory::Block list = Upload(pages.data(), kPages * sizeof(pages[0]));
  const auto crc = checker_->Adopt({chunk.get(), kBytes},
                                   reinterpret_cast<std::byte* const*>(list.get()), kPage);
  ASSERT_TRUE(crc.ok()) << crc.status();
  EXPECT_EQ(*crc, Crc32c(payload));
  std::vector<std::byte> adopted(kBytes);
  ASSERT_TRUE(memory_->Copy(adopted.data(), pool.get(), kBytes).ok());
  EXPECT_TRUE(adopted == payload);
}

TEST_F(ChunkCheckerTest, RefusesWhatIsNotAligned) {
  const DeviceMemory::Block chunk = *memory_->Allocate(64);
  EXPECT_EQ(checker_->Check({chunk.get() + 1, 32}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ChunkCheckerTest, DeviceMemoryIsTold) {
  const DeviceMemory::Block chunk = *memory_->Allocate(64);
  const auto pinned = PinnedBuffer::Allocate(64);
  ASSERT_TRUE(pinned.ok());
  int local = 0;
  EXPECT_TRUE(memory_->Contains(chunk.get()));
  EXPECT_TRUE(memory_->Contains(chunk.get() + 63));
  EXPECT_FALSE(memory_->Contains(pinned->data()));
  EXPECT_FALSE(memory_->Contains(&local));
  EXPECT_FALSE(memory_->Contains(nullptr));
  // What a query could not answer is no error of the next launch.
  EXPECT_TRUE(checker_->Check({chunk.get(), 64}).ok());
}

}  // namespace
}  // namespace kvferry::kernels
