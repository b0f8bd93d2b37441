#include "kvcodec/plan.h"

#include <algorithm>

#include "common/status_macros.h"

namespace kvferry::codec {

BlockPlan PlanBlocks(int tokens, const WindowSpec& window) {
  BlockPlan plan;
  plan.tokens = tokens;
  plan.sinks = std::min(window.sinks, tokens);
  plan.blocks = std::max(0, tokens - window.sinks - window.recent) / kBlockTokens;
  plan.window_begin = plan.sinks + plan.blocks * kBlockTokens;
  return plan;
}

absl::StatusOr<std::size_t> HandoffBytes(int tokens, const Codec& codec,
                                         const CacheGeometry& geometry) {
  KVF_RETURN_IF_ERROR(codec.FitsModel(geometry));
  const BlockPlan plan = PlanBlocks(tokens, codec.window);
  const std::size_t raw_tokens_bytes =
      Raw16Bytes(plan.sinks + plan.window_tokens(), geometry.kv_heads, geometry.head_dim);
  std::size_t bytes = raw_tokens_bytes * geometry.layers;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(const BlockSpec spec, codec.ForLayer(layer, geometry.head_dim));
    bytes += PageBytes(spec, geometry.kv_heads) * plan.blocks;
  }
  return bytes;
}

std::size_t Raw16HandoffBytes(int tokens, const CacheGeometry& geometry) {
  return Raw16Bytes(tokens, geometry.kv_heads, geometry.head_dim) * geometry.layers;
}

}  // namespace kvferry::codec
