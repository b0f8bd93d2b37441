#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"
#include "kernels/page_table.h"

namespace kvferry::kernels {
namespace {

constexpr int kThreads = 256;

// Grid (rows, layers).
__global__ void __launch_bounds__(kThreads)
    fill_page_table_kernel(const __grid_constant__ PageTableParams params) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= params.row_count) return;
  const PageLayer layer = params.layers[blockIdx.y];
  params.table[blockIdx.y * params.table_stride + i] =
      layer.begin + std::int64_t{params.rows[i]} * layer.page_bytes;
}

}  // namespace

absl::Status LaunchPageTable(const PageTableParams& params, Stream& stream) {
  if (params.row_count < 0 || params.row_count > params.table_stride || params.layer_count < 0 ||
      params.layer_count > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("page_table: ", params.row_count, " rows of ",
                                                   params.table_stride, ", ", params.layer_count,
                                                   " layers"));
  }
  if (params.layers == nullptr || params.rows == nullptr || params.table == nullptr) {
    return absl::InvalidArgumentError("page_table: a null pointer");
  }
  if (params.row_count == 0 || params.layer_count == 0) return absl::OkStatus();
  const dim3 grid((params.row_count + kThreads - 1) / kThreads, params.layer_count);
  fill_page_table_kernel<<<grid, kThreads, 0, stream.get()>>>(params);
  return LaunchStatus("page_table");
}

}  // namespace kvferry::kernels
