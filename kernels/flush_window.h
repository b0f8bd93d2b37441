#pragma once

#include "absl/status/status.h"
#include "kernels/quantize_block.h"

namespace kvferry::kernels {

// Turns the oldest 64 window tokens of many sequences and layers into pages: one launch per decode
// step, which a CUDA graph may replay with another list. The kernel is quantize_block's, so that
// decode and prefill make the same bytes.
//   params.items: an item per layer and sequence that flushes. k and v are a window, a ring
//     [kv_heads, ring_rows, head_dim] whose oldest token is in first_row.
//   params.item_count: not null; 0 items cost one empty launch.
//   params.residues: null, since nothing leaves the device.
// Errors are those of LaunchQuantizeBlock. The caller moves the window on, and looks at
// *first_fault before a page is published.
absl::Status LaunchFlushWindow(const QuantizeParams& params, Stream& stream);

}  // namespace kvferry::kernels
