#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/stream.h"
#include "kvcodec/codec.h"

namespace kvferry::kernels {

enum class DequantizedType : std::uint8_t { kFp32, kFp16, kBf16 };

// Codes back to values, for inspection and tests: attention never does this. fp32 values are those
// of the CPU backend bit for bit, 16-bit ones are theirs rounded to nearest even.
struct DequantizeParams {
  const std::byte* const* pages = nullptr;  // [page_count], device memory, 16-byte aligned each
  int page_count = 0;
  int kv_heads = 0;
  codec::BlockSpec spec;
  DequantizedType type = DequantizedType::kFp32;
  void* k = nullptr;  // [page_count, kv_heads, 64, head_dim], device memory, contiguous
  void* v = nullptr;
};

// Asynchronous on `stream`. kInvalidArgument: spec, shape, a null pointer. kUnimplemented: the
// kind is not compiled, with the list of those that are.
absl::Status LaunchDequantizeBlock(const DequantizeParams& params, Stream& stream);

}  // namespace kvferry::kernels
