#include "transport/slot_ring.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/string_view.h"

namespace kvferry::transport {

absl::StatusOr<SlotRings> SlotRings::Create(Transport& transport, const SlotRingOptions& options) {
  if (options.slots < options.least_slots || options.slot_bytes == 0 ||
      options.slot_bytes % 4096 != 0 || options.slot_bytes > UINT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(
        ToAbsl(options.name), ": ", options.slots, " of ", options.slot_bytes, " bytes; at least ",
        options.least_slots, " of a multiple of 4096 below 4 GiB needed"));
  }
  SlotRings rings(options.slots, options.slot_bytes);
  for (const Path& path : transport.paths()) {
    if (rings.has(path.memory)) continue;
    KVF_ASSIGN_OR_RETURN(std::unique_ptr<Region> region,
                         transport.Allocate(options.slot_bytes * options.slots, path.memory));
    rings.rings_.push_back({.memory = path.memory, .region = std::move(region)});
  }
  return rings;
}

std::span<std::byte> SlotRings::bytes(std::uint32_t slot) const {
  return rings_[slot / slots_per_ring_].region->bytes().subspan(
      slot % slots_per_ring_ * slot_bytes_, slot_bytes_);
}

std::span<std::byte> SlotRings::ring(MemoryKind memory) const {
  for (const Ring& ring : rings_) {
    if (ring.memory == memory) return ring.region->bytes();
  }
  return {};
}

FreeSlots::FreeSlots(const SlotRings& rings)
    : slots_per_ring_(rings.slots_per_ring_), taken_(rings.slots()) {
  std::uint32_t end = 0;
  for (const SlotRings::Ring& ring : rings.rings_) {
    end += slots_per_ring_;
    Ring& own = rings_.emplace_back(Ring{.memory = ring.memory, .free = {}});
    for (std::uint32_t i = 1; i <= slots_per_ring_; ++i) own.free.push_back(end - i);
  }
}

bool FreeSlots::any(MemoryKind memory) const {
  return std::any_of(rings_.begin(), rings_.end(),
                     [&](const Ring& ring) { return ring.memory == memory && !ring.free.empty(); });
}

std::optional<std::uint32_t> FreeSlots::Take(MemoryKind memory) {
  for (Ring& ring : rings_) {
    if (ring.memory != memory || ring.free.empty()) continue;
    const std::uint32_t slot = ring.free.back();
    ring.free.pop_back();
    taken_[slot] = true;
    return slot;
  }
  return std::nullopt;
}

void FreeSlots::Return(std::uint32_t slot) {
  if (!taken(slot)) {
    Log(LogLevel::kError, "slot_returned_untaken", {{"slot", slot}, {"slots", taken_.size()}});
    std::abort();
  }
  taken_[slot] = false;
  rings_[slot / slots_per_ring_].free.push_back(slot);
}

std::uint32_t FreeSlots::count() const {
  std::size_t free = 0;
  for (const Ring& ring : rings_) free += ring.free.size();
  return static_cast<std::uint32_t>(free);
}

}  // namespace kvferry::transport
