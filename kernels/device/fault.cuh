#pragma once

#include <cstdint>

#include "kernels/quantize_types.h"

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
  const std::uint16_t* values;
  int stride;  // elements
  int first_row;
  int ring_rows;  // 0: not a ring

  __device__ __forceinline__ const std::uint16_t* at(int token) const {
    int row = first_row + token;
    if (ring_rows != 0 && row >= ring_rows) row -= ring_rows;
    return values + std::int64_t{row} * stride;
  }
};

}  // namespace kvferry::kernels
