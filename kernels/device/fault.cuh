#pragma once

#include <cstdint>

#include "kernels/quantize_types.h"
#include "kvcodec/format.h"

namespace kvferry::kernels {

// Where one side of one head reports what cannot be stored. The least key of all stays.
struct FaultSink {
  unsigned long long* first;
  unsigned long long base;  // item, head and side

  __device__ __forceinline__ void value(int token, int channel) const {
    atomicMin(first, base | FaultKey({.token = token, .channel = channel}));
  }
  __device__ __forceinline__ void scale(int token, int channel) const {
    atomicMin(first, base | FaultKey({.is_scale = true, .token = token, .channel = channel}));
  }
};

// The 64 rows of one side of one head, in a ring or not.
struct Rows {
  const std::byte* first;    // of token 0
  const std::byte* wrapped;  // the same, a ring before
  unsigned stride;           // bytes
  int wrap;                  // the first token that the ring has begun again for

  __device__ __forceinline__ Rows(const std::uint16_t* values, int token_stride, int first_row,
                                  int ring_rows)
      : first(reinterpret_cast<const std::byte*>(values + std::int64_t{first_row} * token_stride)),
        wrapped(first - std::int64_t{ring_rows} * token_stride * 2),
        stride(2 * token_stride),
        wrap(ring_rows == 0 ? codec::format::kTokens : ring_rows - first_row) {}

  __device__ __forceinline__ const std::uint16_t* at(int token) const {
    const std::byte* base = token < wrap ? first : wrapped;
    return reinterpret_cast<const std::uint16_t*>(
        base + std::uint64_t{static_cast<unsigned>(token)} * stride);
  }
};

}  // namespace kvferry::kernels
