#include "transport/slot_ring.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "tests/fakes/device_path_transport.h"
#include "tests/transport/recording_sink.h"
#include "transport/loopback/loopback_transport.h"

namespace kvferry::transport {
namespace {

constexpr std::size_t kSlotBytes = 8192;
constexpr std::uint32_t kSlots = 3;

class SlotRing : public testing::Test {
 protected:
  // Host memory alone, or a device's besides it.
  std::unique_ptr<Transport> MakeTransport(bool device) {
    std::unique_ptr<Transport> transport =
        network_->CreateTransport({.incarnation = 1}, &sink_, Clock::Steady()).value();
    if (!device) return transport;
    return std::make_unique<fakes::DevicePathTransport>(std::move(transport), paths_);
  }

  RecordingSink sink_;
  fakes::DevicePaths paths_;
  std::unique_ptr<LoopbackNetwork> network_ = LoopbackNetwork::Create();
};

TEST_F(SlotRing, RefusesSizesByName) {
  const std::unique_ptr<Transport> transport = MakeTransport(false);
  const SlotRingOptions bad[] = {
      {.name = "send slots", .slot_bytes = kSlotBytes, .slots = 0},
      {.name = "send slots", .slot_bytes = kSlotBytes, .slots = 1, .least_slots = 2},
      {.name = "send slots", .slot_bytes = 0, .slots = 1},
      {.name = "send slots", .slot_bytes = 4095, .slots = 1},
      {.name = "send slots", .slot_bytes = std::size_t{1} << 32, .slots = 1},
  };
  for (const SlotRingOptions& options : bad) {
    const absl::Status status = SlotRings::Create(*transport, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(status.message().substr(0, 10), "send slots");
  }
}

TEST_F(SlotRing, EverySlotIsMemoryOfItsOwn) {
  const std::unique_ptr<Transport> transport = MakeTransport(true);
  const SlotRings rings =
      SlotRings::Create(*transport, {.slot_bytes = kSlotBytes, .slots = kSlots}).value();
  ASSERT_EQ(rings.slots(), 2 * kSlots);
  std::set<std::byte*> begins;
  for (std::uint32_t slot = 0; slot < rings.slots(); ++slot) {
    const std::span<std::byte> bytes = rings.bytes(slot);
    EXPECT_EQ(bytes.size(), kSlotBytes);
    std::fill(bytes.begin(), bytes.end(), std::byte{static_cast<unsigned char>(slot + 1)});
    begins.insert(bytes.data());
  }
  EXPECT_EQ(begins.size(), rings.slots());
  for (std::uint32_t slot = 0; slot < rings.slots(); ++slot) {
    const std::span<std::byte> bytes = rings.bytes(slot);
    EXPECT_EQ(
        std::count(bytes.begin(), bytes.end(), std::byte{static_cast<unsigned char>(slot + 1)}),
        static_cast<std::ptrdiff_t>(kSlotBytes));
  }
}

TEST_F(SlotRing, ARingHoldsTheSlotsOfItsMemory) {
  const std::unique_ptr<Transport> transport = MakeTransport(true);
  const SlotRings rings =
      SlotRings::Create(*transport, {.slot_bytes = kSlotBytes, .slots = kSlots}).value();
  FreeSlots free(rings);
  for (const MemoryKind memory : {MemoryKind::kHost, MemoryKind::kDevice}) {
    const std::span<std::byte> ring = rings.ring(memory);
    EXPECT_EQ(ring.size(), kSlots * kSlotBytes);
    for (std::uint32_t i = 0; i < kSlots; ++i) {
      const std::span<std::byte> bytes = rings.bytes(free.Take(memory).value());
      EXPECT_GE(bytes.data(), ring.data());
      EXPECT_LE(bytes.data() + bytes.size(), ring.data() + ring.size());
    }
    EXPECT_FALSE(free.any(memory));
  }
}

TEST_F(SlotRing, ATransportWithoutADeviceHasNoRingThere) {
  const std::unique_ptr<Transport> transport = MakeTransport(false);
  const SlotRings rings =
      SlotRings::Create(*transport, {.slot_bytes = kSlotBytes, .slots = kSlots}).value();
  EXPECT_EQ(rings.slots(), kSlots);
  EXPECT_TRUE(rings.ring(MemoryKind::kDevice).empty());
  FreeSlots free(rings);
  EXPECT_FALSE(free.any(MemoryKind::kDevice));
  EXPECT_FALSE(free.Take(MemoryKind::kDevice).has_value());
  EXPECT_EQ(free.count(), kSlots);
}

TEST_F(SlotRing, ASlotIsTakenOnceUntilItComesBack) {
  const std::unique_ptr<Transport> transport = MakeTransport(false);
  const SlotRings rings =
      SlotRings::Create(*transport, {.slot_bytes = kSlotBytes, .slots = kSlots}).value();
  FreeSlots free(rings);
  std::set<std::uint32_t> taken;
  while (const std::optional<std::uint32_t> slot = free.Take(MemoryKind::kHost)) {
    EXPECT_TRUE(taken.insert(*slot).second) << *slot;
    EXPECT_TRUE(free.taken(*slot));
    EXPECT_EQ(free.count(), kSlots - taken.size());
  }
  EXPECT_EQ(taken.size(), kSlots);
  const std::uint32_t middle = *std::next(taken.begin());
  free.Return(middle);
  EXPECT_FALSE(free.taken(middle));
  EXPECT_TRUE(free.any(MemoryKind::kHost));
  EXPECT_EQ(free.Take(MemoryKind::kHost), middle);
  EXPECT_FALSE(free.any(MemoryKind::kHost));
}

TEST_F(SlotRing, ASlotGoesBackToItsOwnRing) {
  const std::unique_ptr<Transport> transport = MakeTransport(true);
  const SlotRings rings =
      SlotRings::Create(*transport, {.slot_bytes = kSlotBytes, .slots = 1}).value();
  FreeSlots free(rings);
  const std::uint32_t host = free.Take(MemoryKind::kHost).value();
  const std::uint32_t device = free.Take(MemoryKind::kDevice).value();
  free.Return(host);
  EXPECT_FALSE(free.any(MemoryKind::kDevice));
  EXPECT_EQ(free.Take(MemoryKind::kHost), host);
  free.Return(device);
  EXPECT_FALSE(free.any(MemoryKind::kHost));
  EXPECT_EQ(free.Take(MemoryKind::kDevice), device);
}

using SlotRingDeathTest = SlotRing;

TEST_F(SlotRingDeathTest, ASlotThatWasNotTakenEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::unique_ptr<Transport> transport = MakeTransport(false);
  const SlotRings rings =
      SlotRings::Create(*transport, {.slot_bytes = kSlotBytes, .slots = kSlots}).value();
  FreeSlots free(rings);
  const std::uint32_t slot = free.Take(MemoryKind::kHost).value();
  free.Return(slot);
  EXPECT_DEATH(free.Return(slot), "slot_returned_untaken");
  EXPECT_DEATH(free.Return(kSlots), "slot_returned_untaken");
}

}  // namespace
}  // namespace kvferry::transport
