#pragma once

#include "absl/status/status.h"
#include "kernels/quantize_block.h"

namespace kvferry::kernels {

// Turns the oldest 64 window tokens of many sequences and layers into pages: one launch per decode
// step, which a CUDA graph may replay with another list. The kernel is quantize_block's, so that
// decode and prefill make the same bytes.
struct FlushParams {
  // [max_items], device memory: an item per layer and sequence that flushes. k and v are a window,
  // a ring [kv_heads, ring_rows, head_dim] whose oldest token is in first_row.
  const QuantizeItem* items = nullptr;
  int max_items = 0;
  const unsigned* item_count = nullptr;  // device memory; 0 items cost one empty launch
  int kv_heads = 0;
  int head_dim = 0;
  codec::BlockKind kind = codec::BlockKind::kScalar;
  codec::Raw16 type = codec::Raw16::kFp16;
  int k_group_tokens = 0;
  int v_group_channels = 0;
  int max_bits = 8;
  std::uint64_t* first_fault = nullptr;  // device memory; see FaultKey. Only ever lowered
};

// Errors are those of LaunchQuantizeBlock; item_count must not be null. The caller moves the window
// on, and looks at *first_fault before a page is published.
absl::Status LaunchFlushWindow(const FlushParams& params, Stream& stream);

}  // namespace kvferry::kernels
