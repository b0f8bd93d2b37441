// A cache in the memory of a GPU holds the bytes that the CPU backend makes.
#include "kernels/cuda/device_memory.h"
#include "tests/decode_node/cache_store_suite.h"
#include "tests/decode_node/device_machine.h"

namespace kvferry::decode {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Gpu, CacheStoreTest, DeviceMachine);

class DeviceCacheMemoryTest : public CacheStoreTest<DeviceMachine> {};

TEST_F(DeviceCacheMemoryTest, AdoptsFromAPinnedRing) {
  std::vector<std::byte> ring(2 * DeviceMachine::kSlotBytes);
  auto pin = machine.memory().PinLanding(ring);
  ASSERT_TRUE(pin.ok()) << pin.status();
  const auto sequence = store->Reserve(kSuiteTokens, 1).value();
  for (transport::ChunkHeader header : AllChunks(MakeSpec(kSuiteTokens))) {
    const std::vector<std::byte> payload = Encode(header, kSuiteTokens);
    const auto slot = std::span(ring).subspan(DeviceMachine::kSlotBytes, payload.size());
    std::copy(payload.begin(), payload.end(), slot.begin());
    const absl::Status status = sequence->CopyChunk(header, slot);
    ASSERT_TRUE(status.ok()) << status;
    // The slot is the sender's again: nothing reads it any more.
    std::fill(slot.begin(), slot.end(), std::byte{0xff});
    ASSERT_TRUE(sequence->FillChunk(header).ok());
  }
  ASSERT_TRUE(sequence->Publish().ok());
  ExpectSameAsPrefill(*sequence, kSuiteTokens);
}

TEST_F(DeviceCacheMemoryTest, AdoptsFromARingOnTheGpu) {
  const auto device = kernels::CreateDeviceMemory(0).value();
  const DeviceMemory::Block ring = device->Allocate(2 * DeviceMachine::kSlotBytes).value();
  std::byte* const slot = ring.get() + DeviceMachine::kSlotBytes;
  const auto sequence = store->Reserve(kSuiteTokens, 1).value();
  for (transport::ChunkHeader header : AllChunks(MakeSpec(kSuiteTokens))) {
    const std::vector<std::byte> payload = Encode(header, kSuiteTokens);
    ASSERT_TRUE(device->Copy(slot, payload.data(), payload.size()).ok());
    const absl::Status status = sequence->CopyChunk(header, {slot, payload.size()});
    ASSERT_TRUE(status.ok()) << status;
    // The slot is the sender's again: nothing reads it any more.
    const std::vector<std::byte> other(payload.size(), std::byte{0xff});
    ASSERT_TRUE(device->Copy(slot, other.data(), other.size()).ok());
    ASSERT_TRUE(sequence->FillChunk(header).ok());
  }
  ASSERT_TRUE(sequence->Publish().ok());
  ExpectSameAsPrefill(*sequence, kSuiteTokens);
}

TEST_F(DeviceCacheMemoryTest, ManyPartsAndManyItemsNeedSeveralLaunches) {
  // 70 parts of different pieces in turn: more than one launch takes.
  std::vector<std::byte> payload;
  std::vector<ChunkPart> parts;
  std::byte* to = machine.memory().Allocate(std::size_t{1} << 20).value();
  std::byte* const begin = to;
  for (int i = 0; i < 70; ++i) {
    ChunkPart& part = parts.emplace_back();
    part.piece_bytes = 128 * (1 + i % 2);
    for (int piece = 0; piece < 3; ++piece, to += part.piece_bytes) {
      part.pieces.push_back(to);
      payload.insert(payload.end(), part.piece_bytes, static_cast<std::byte>(3 * i + piece));
    }
  }
  const auto crc = machine.memory().CopyChunk(parts, payload);
  ASSERT_TRUE(crc.ok()) << crc.status();
  EXPECT_EQ(*crc, Crc32c(payload));
  EXPECT_TRUE(machine.Download(begin, payload.size()) == payload);
  payload.pop_back();
  EXPECT_TRUE(absl::IsInternal(machine.memory().CopyChunk(parts, payload).status()));
}

TEST_F(DeviceCacheMemoryTest, AFlushOfMoreItemsThanOneLaunchTakes) {
  std::vector<std::unique_ptr<StoredSequence>> sequences;
  std::vector<StoredSequence*> full;
  // 30 sequences of 3 layers; the machine is made for 64 items.
  for (int i = 0; i < 30; ++i) {
    sequences.push_back(AdoptPrompt(4 + 127, 2));
    AppendToken(*sequences.back());
    full.push_back(sequences.back().get());
    ASSERT_TRUE(full.back()->MustFlush());
  }
  for (const absl::Status& status : store->Flush(full)) EXPECT_TRUE(status.ok()) << status;
  for (const StoredSequence* sequence : full) ExpectSameAsPrefill(*sequence, 4 + 128);
}

TEST_F(DeviceCacheMemoryTest, ALargerSlotThanAKernelTakesIsRefused) {
  const absl::Status status =
      DeviceCacheMemory::Create({.slot_bytes = std::size_t{1} << 30}, machine.stream()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

}  // namespace
}  // namespace kvferry::decode
