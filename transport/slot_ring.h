#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transport/transport.h"

namespace kvferry::transport {

struct SlotRingOptions {
  std::string_view name;          // "send slots", for errors
  std::size_t slot_bytes = 0;     // a multiple of 4096 below 4 GiB
  std::uint32_t slots = 0;        // of each ring
  std::uint32_t least_slots = 1;  // fewer are refused
};

// The registered memory that payloads are sent from or land in: one ring of equal slots for each
// kind of memory that a path of the transport has. A slot is known by one number over all rings:
// ring r has [r * slots, (r + 1) * slots). Which of them are free is FreeSlots'.
// Thread: any; fixed after Create. Dies before its transport.
class SlotRings {
 public:
  // kInvalidArgument: sizes. Else what the transport refuses.
  static absl::StatusOr<SlotRings> Create(Transport& transport, const SlotRingOptions& options);

  std::span<std::byte> bytes(std::uint32_t slot) const;
  // All slots in `memory`, one after the other; empty: there is no such ring.
  std::span<std::byte> ring(MemoryKind memory) const;
  std::uint32_t slots() const {
    return static_cast<std::uint32_t>(rings_.size()) * slots_per_ring_;
  }

 private:
  friend class FreeSlots;
  struct Ring {
    MemoryKind memory{};
    std::unique_ptr<Region> region;
  };
  SlotRings(std::uint32_t slots_per_ring, std::size_t slot_bytes)
      : slots_per_ring_(slots_per_ring), slot_bytes_(slot_bytes) {}
  bool has(MemoryKind memory) const { return !ring(memory).empty(); }

  std::uint32_t slots_per_ring_;
  std::size_t slot_bytes_;
  std::vector<Ring> rings_;
};

// Which slots of a SlotRings nobody uses. Whoever takes one gives it back once, when neither side
// of the connection touches its memory any more; a slot that is given back without having been
// taken ends the process, because its memory would be used twice.
// Thread: none; the owner serializes.
class FreeSlots {
 public:
  FreeSlots() = default;                       // of no rings
  explicit FreeSlots(const SlotRings& rings);  // all of them

  bool any(MemoryKind memory) const;
  // The one that was given back last: its memory is most likely in a cache. Empty: none is free.
  std::optional<std::uint32_t> Take(MemoryKind memory);
  void Return(std::uint32_t slot);

  bool taken(std::uint32_t slot) const { return slot < taken_.size() && taken_[slot]; }
  std::uint32_t count() const;

 private:
  struct Ring {
    MemoryKind memory{};
    std::vector<std::uint32_t> free;
  };
  std::uint32_t slots_per_ring_ = 0;
  std::vector<Ring> rings_;
  std::vector<bool> taken_;  // by slot
};

}  // namespace kvferry::transport
