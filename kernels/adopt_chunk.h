#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/chunk_check.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

inline constexpr int kMaxAdoptParts = 32;

// A run of equal pages of a chunk's payload and where they go. A chunk whose layers have pages of
// different sizes is several parts.
//   payload: [pages, page_bytes] in the landing slot, device memory, 16-byte aligned. The last page
//            may be short (payload of any size).
//   pages:   [ceil(bytes / page_bytes)] destinations, in device memory, each 16-byte aligned. Sinks
//            and windows come the same way: a "page" is then the rows of one head and side. Null:
//            the payload is checked and stays where it is.
struct AdoptPart {
  const std::byte* payload = nullptr;
  std::byte* const* pages = nullptr;
  std::uint32_t bytes = 0;
  std::uint32_t page_bytes = 0;   // a multiple of 16
  std::uint32_t after_units = 0;  // 16-byte units of the chunk that follow this part, rounded up
  std::uint32_t residue = 0;      // index of the chunk's word in AdoptParams::residues
};

struct AdoptParams {
  AdoptPart parts[kMaxAdoptParts];
  int part_count = 0;
  std::uint32_t* residues = nullptr;  // device memory, zeroed by the caller before
  const CheckTables* tables = nullptr;
};

// Copies payloads to their pages and sums up their CRC32C, in one read. Asynchronous on `stream`.
//
// The bytes are in the pages before anyone knows whether they are right. That is safe because a
// page is granted to this transfer alone and attention reads published pages only: the host
// compares FinishChunkCheck(residue, payload bytes) with the header's payload_check, and only then
// moves the pages from granted to filled and sends an ACK. After a bad check they stay granted, the
// NACK's resend writes them again, and a transfer that fails returns them unread.
//   kInvalidArgument: shape, alignment, a null pointer.
absl::Status LaunchAdoptChunk(const AdoptParams& params, Stream& stream);

}  // namespace kvferry::kernels
