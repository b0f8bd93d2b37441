#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kvcodec/backend.h"
#include "prefill_node/chunk_layout.h"

namespace kvferry::prefill {

// Writes the payload of one chunk, in wire order (layer, block, KV head; sinks and window: layer,
// [K: head, token, channel][V]), and returns its CRC32C.
//   layers: one spec per layer. views: one per layer, covering at least chunk.ready_tokens tokens
//   in the layers of the chunk. out: chunk.bytes bytes, 128-byte aligned.
// Errors are the backend's: kInvalidArgument names layer, head and token of a NaN. Thread: any.
absl::StatusOr<std::uint32_t> EncodeChunk(const ChunkPlan& chunk,
                                          std::span<const codec::BlockSpec> layers,
                                          std::span<const codec::KvView> views,
                                          const codec::Quantizer& quantizer,
                                          std::span<std::byte> out);

}  // namespace kvferry::prefill
