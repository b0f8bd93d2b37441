#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

// Where the new token of one sequence goes: its rows of KV head 0 in layer 0.
struct AppendTarget {
  std::uint16_t* k = nullptr;
  std::uint16_t* v = nullptr;
  std::int64_t head_stride = 0;  // in elements, from one head's row to the next one's
  std::int64_t reserved = 0;
};
static_assert(sizeof(AppendTarget) == 32);

// One layer of one decode step. All pointers are in device memory, rows 16-byte aligned.
struct AppendParams {
  const AppendTarget* targets = nullptr;  // [sequences]
  int sequences = 0;
  int kv_heads = 0;
  int head_dim = 0;                  // a multiple of 8
  std::int64_t layer_offset = 0;     // in elements, added to every target; a multiple of 8
  const std::uint16_t* k = nullptr;  // [sequences, kv_heads, head_dim] of the new tokens
  const std::uint16_t* v = nullptr;
};

// Copies the new tokens' K and V into their windows (or sinks): one row of each head, nothing is
// shifted. Asynchronous on `stream`; captured by CUDA graphs. kInvalidArgument: shape, a null
// pointer.
absl::Status LaunchAppendTokens(const AppendParams& params, Stream& stream);

}  // namespace kvferry::kernels
