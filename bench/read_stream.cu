#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "bench/read_stream.h"
#include "common/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/status.h"
#include "kernels/device/block_ring.cuh"

namespace kvferry::bench {
namespace {

constexpr int kWarps = 4, kStages = 2;

template <int kBlockBytes>
constexpr int kSharedBytes = kWarps* kStages*(kBlockBytes + 8);

template <int kBlockBytes>
__global__ void __launch_bounds__(kWarps * 32)
    read_stream_kernel(const std::byte* const* pages, int page_count, int heads, int rounds,
                       std::uint32_t* sink) {
  extern __shared__ __align__(128) char shared[];
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0), lane = threadIdx.x % 32;
  char* slots = shared + warp * kStages * kBlockBytes;
  auto* full = reinterpret_cast<std::uint64_t*>(shared + kWarps * kStages * kBlockBytes);
  kernels::BlockRing<kStages, kBlockBytes> ring(slots, full + warp * kStages, lane);
  const int blocks = page_count * heads * rounds, step = static_cast<int>(gridDim.x) * kWarps;
  const auto load = [&](int stage, int block) {
    if (block < blocks) {
      ring.load(stage, reinterpret_cast<const char*>(pages[block / heads % page_count]) +
                           static_cast<long long>(block % heads) * kBlockBytes);
    } else {
      ring.skip();
    }
  };
  int block = static_cast<int>(blockIdx.x) * kWarps + warp;
  for (int stage = 0; stage < kStages; ++stage) load(stage, block + stage * step);
  std::uint32_t sum = 0;
  for (std::uint32_t i = 0; block < blocks; ++i, block += step) {
    const char* at = ring.wait(i % kStages, i / kStages % 2);
    sum ^= *reinterpret_cast<const std::uint32_t*>(at + lane * 4);
    __syncwarp();
    load(i % kStages, block + kStages * step);
  }
  if (page_count < 0) *sink = sum;
}

template <int kBlockBytes>
absl::Status Launch(const std::byte* const* pages, int page_count, int heads, int rounds,
                    std::uint32_t* sink, kernels::Stream& stream) {
  int device = 0, per_multiprocessor = 0;
  KVF_RETURN_IF_ERROR(kernels::CudaStatus(cudaGetDevice(&device), "device"));
  KVF_ASSIGN_OR_RETURN(const kernels::DeviceInfo info, kernels::GetDevice(device));
  KVF_RETURN_IF_ERROR(kernels::CudaStatus(
      cudaFuncSetAttribute(read_stream_kernel<kBlockBytes>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kBlockBytes>),
      "shared memory"));
  KVF_RETURN_IF_ERROR(kernels::CudaStatus(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                              &per_multiprocessor, read_stream_kernel<kBlockBytes>,
                                              kWarps * 32, kSharedBytes<kBlockBytes>),
                                          "occupancy"));
  const int grid = std::min(per_multiprocessor, 4) * info.multiprocessors;
  read_stream_kernel<kBlockBytes><<<grid, kWarps * 32, kSharedBytes<kBlockBytes>, stream.get()>>>(
      pages, page_count, heads, rounds, sink);
  return kernels::LaunchStatus("read_stream");
}

}  // namespace

absl::Status LaunchReadStream(const std::byte* const* pages, int page_count, int heads,
                              int block_bytes, int rounds, std::uint32_t* sink,
                              kernels::Stream& stream) {
  switch (block_bytes) {
    case 2048:
      return Launch<2048>(pages, page_count, heads, rounds, sink, stream);
    case 2560:
      return Launch<2560>(pages, page_count, heads, rounds, sink, stream);
    case 4096:
      return Launch<4096>(pages, page_count, heads, rounds, sink, stream);
    case 4352:
      return Launch<4352>(pages, page_count, heads, rounds, sink, stream);
    case 4864:
      return Launch<4864>(pages, page_count, heads, rounds, sink, stream);
    case 6400:
      return Launch<6400>(pages, page_count, heads, rounds, sink, stream);
    case 6912:
      return Launch<6912>(pages, page_count, heads, rounds, sink, stream);
    case 8192:
      return Launch<8192>(pages, page_count, heads, rounds, sink, stream);
    case 8448:
      return Launch<8448>(pages, page_count, heads, rounds, sink, stream);
    case 8704:
      return Launch<8704>(pages, page_count, heads, rounds, sink, stream);
    case 16640:
      return Launch<16640>(pages, page_count, heads, rounds, sink, stream);
    case 8960:
      return Launch<8960>(pages, page_count, heads, rounds, sink, stream);
    default:
      return absl::UnimplementedError(absl::StrCat("read_stream: blocks of ", block_bytes));
  }
}

}  // namespace kvferry::bench
