#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcodec/codec.h"
#include "kvcodec/plan.h"
#include "transport/wire.h"

namespace kvferry::prefill {

// Gather until a chunk is this large, if its layers are ready by then: smaller messages lose
// bandwidth, larger ones overlap less with the model.
inline constexpr std::size_t kChunkTargetBytes = std::size_t{1} << 20;
// Of payloads that stay on GPUs: such a link carries one in some tens of microseconds, and there
// are fewer launches, waits and messages.
inline constexpr std::size_t kDeviceChunkTargetBytes = std::size_t{4} << 20;

// One chunk of a hand-off: a rectangle of layers and tokens. It can be encoded when the model has
// `ready_tokens` tokens in layer `layer_end() - 1`.
struct ChunkPlan {
  transport::ChunkKind kind = transport::ChunkKind::kBlocks;
  int layer_begin = 0;
  int layer_count = 0;
  int token_begin = 0;  // absolute positions; whole blocks for kBlocks
  int token_count = 0;
  std::size_t bytes = 0;  // of the payload
  int ready_tokens = 0;

  int layer_end() const { return layer_begin + layer_count; }
  bool operator==(const ChunkPlan&) const = default;
};

struct LayoutInput {
  codec::BlockPlan plan;
  codec::CacheGeometry geometry;
  std::span<const codec::BlockSpec> layers;  // one per layer
  int step_tokens = 0;                       // prompt tokens per model call
  std::size_t slot_bytes = 0;                // the largest payload that both sides can hold
  std::size_t target_bytes = kChunkTargetBytes;
};

// All chunks of a hand-off in the order in which they become ready: every byte of sinks, blocks and
// window exactly once, HandoffBytes() in all. Pure. kInvalidArgument: a slot smaller than one page
// or than one layer's 16-bit tokens, with both sizes.
absl::StatusOr<std::vector<ChunkPlan>> LayoutChunks(const LayoutInput& input);

}  // namespace kvferry::prefill
