#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

// The pages of one layer in a pool: that of row r is at begin + r * page_bytes.
struct PageLayer {
  const std::byte* begin = nullptr;
  std::int64_t page_bytes = 0;
};

// All pointers are in device memory.
struct PageTableParams {
  const PageLayer* layers = nullptr;  // [layer_count]
  int layer_count = 0;
  const std::uint32_t* rows = nullptr;  // [row_count], of all sequences one after another
  int row_count = 0;                    // at most table_stride
  const std::byte** table = nullptr;    // [layer_count, table_stride]
  std::int64_t table_stride = 0;
};

// Writes the page table of one decode step, table[layer][i] = the page of rows[i]: what crosses the
// bus are rows, which all layers have in common. Asynchronous on `stream`. kInvalidArgument: shape,
// a null pointer.
absl::Status LaunchPageTable(const PageTableParams& params, Stream& stream);

}  // namespace kvferry::kernels
