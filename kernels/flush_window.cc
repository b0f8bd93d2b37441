#include "kernels/flush_window.h"

namespace kvferry::kernels {

absl::Status LaunchFlushWindow(const QuantizeParams& params, Stream& stream) {
  if (params.item_count == nullptr || params.residues != nullptr) {
    return absl::InvalidArgumentError("flush_window: item_count is null or residues is not");
  }
  return LaunchQuantizeBlock(params, stream);
}

}  // namespace kvferry::kernels
