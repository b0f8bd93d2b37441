#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/append_tokens.h"
#include "kernels/cuda/status.h"
#include "kernels/device/dependent_launch.cuh"

namespace kvferry::kernels {
namespace {

constexpr int kVector = 8;  // elements of one 16-byte access
constexpr int kMaxThreads = 256;

// Grid (sequences, K and V).
__global__ void __launch_bounds__(kMaxThreads)
    append_tokens_kernel(const __grid_constant__ AppendParams params) {
  let_next_kernel_start();
  const AppendTarget target = params.targets[blockIdx.x];
  const bool is_v = blockIdx.y == 1;
  const std::int64_t elements = std::int64_t{params.kv_heads} * params.head_dim;
  const std::uint16_t* from = (is_v ? params.v : params.k) + blockIdx.x * elements;
  std::uint16_t* to = (is_v ? target.v : target.k) + params.layer_offset;
  for (int at = threadIdx.x * kVector; at < elements; at += blockDim.x * kVector) {
    const int head = at / params.head_dim, channel = at % params.head_dim;
    *reinterpret_cast<uint4*>(to + head * target.head_stride + channel) =
        *reinterpret_cast<const uint4*>(from + at);
  }
}

}  // namespace

absl::Status LaunchAppendTokens(const AppendParams& params, Stream& stream) {
  if (params.sequences < 0 || params.kv_heads <= 0 || params.head_dim <= 0 ||
      params.head_dim % kVector != 0 || params.layer_offset % kVector != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("append_tokens: ", params.sequences, " sequences, ", params.kv_heads,
                     " KV heads of ", params.head_dim, " channels, offset ", params.layer_offset));
  }
  if (params.targets == nullptr || params.k == nullptr || params.v == nullptr) {
    return absl::InvalidArgumentError("append_tokens: a null pointer");
  }
  if (params.sequences == 0) return absl::OkStatus();
  const int vectors = params.kv_heads * params.head_dim / kVector;
  const int threads = std::min(kMaxThreads, (vectors + 31) / 32 * 32);
  append_tokens_kernel<<<dim3(params.sequences, 2), threads, 0, stream.get()>>>(params);
  return LaunchStatus("append_tokens");
}

}  // namespace kvferry::kernels
