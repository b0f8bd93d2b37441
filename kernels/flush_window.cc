#include "kernels/flush_window.h"

namespace kvferry::kernels {

absl::Status LaunchFlushWindow(const FlushParams& params, Stream& stream) {
  if (params.item_count == nullptr) {
    return absl::InvalidArgumentError("flush_window: item_count is null");
  }
  return LaunchQuantizeBlock({.items = params.items,
                              .max_items = params.max_items,
                              .item_count = params.item_count,
                              .kv_heads = params.kv_heads,
                              .head_dim = params.head_dim,
                              .kind = params.kind,
                              .type = params.type,
                              .k_group_tokens = params.k_group_tokens,
                              .v_group_channels = params.v_group_channels,
                              .max_bits = params.max_bits,
                              .first_fault = params.first_fault},
                             stream);
}

}  // namespace kvferry::kernels
