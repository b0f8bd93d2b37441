#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"

namespace kvferry::bench {

// The baseline: LibTorch's scaled_dot_product_attention on an fp16 cache, one query token.
class TorchAttention {
 public:
  enum class Kernel { kFlash, kCudnn };

  // Random K and V, `copies` of them, in GPU memory. kUnavailable: no LibTorch with CUDA.
  static absl::StatusOr<std::unique_ptr<TorchAttention>> Create(int batch, int tokens, int q_heads,
                                                                int kv_heads, int head_dim,
                                                                int copies,
                                                                kernels::Stream& stream);
  virtual ~TorchAttention() = default;

  // Enqueues one on copy `copy`. An error: LibTorch has no such kernel for the shape.
  virtual absl::Status Launch(Kernel kernel, int copy) = 0;
};

}  // namespace kvferry::bench
