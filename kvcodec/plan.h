#pragma once

#include "kvcodec/codec.h"

namespace kvferry::codec {

// Which tokens of a sequence are sinks, blocks and window (docs/format.md). Token ranges are
// half-open.
//   [0, sinks) 16 bit   [sinks, sinks + 64 * blocks) compressed   [window_begin, tokens) 16 bit
struct BlockPlan {
  int tokens = 0;
  int sinks = 0;   // min(S, tokens)
  int blocks = 0;  // max(0, floor((tokens - S - R) / 64))
  int window_begin = 0;

  int window_tokens() const { return tokens - window_begin; }
  int block_begin(int block) const { return sinks + block * kBlockTokens; }
};

// Pure; the one truth for prefill, reservation, decode and pricing. Requires tokens >= 0.
BlockPlan PlanBlocks(int tokens, const WindowSpec& window);

// The most window tokens that a sequence ever holds: recent + 64 (the flush happens on reaching
// it).
inline int WindowCapacity(const WindowSpec& window) { return window.recent + kBlockTokens; }

// Exact payload bytes of a hand-off of `tokens` tokens: sinks + blocks + window over all layers.
// Headers not counted.
absl::StatusOr<std::size_t> HandoffBytes(int tokens, const Codec& codec,
                                         const CacheGeometry& geometry);
// What the same tokens cost as plain 16-bit K and V.
std::size_t Raw16HandoffBytes(int tokens, const CacheGeometry& geometry);

}  // namespace kvferry::codec
