#include "kernels/cuda/device.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/cuda/status.h"

namespace kvferry::kernels {
namespace {

constexpr int kOldestCapability = 80;

}  // namespace

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // it is sticky for the next launch otherwise
    return 0;
  }
  return count;
}

absl::StatusOr<DeviceInfo> GetDevice(int ordinal) {
  const int count = DeviceCount();
  if (count == 0) {
    return absl::UnavailableError(
        "no NVIDIA GPU: install the driver (nvidia-smi must list a GPU), or in a container give "
        "it the GPU");
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::UnavailableError(absl::StrFormat(
        "GPU %d does not exist: this process sees %d, counted from 0", ordinal, count));
  }
  cudaDeviceProp properties;
  KVF_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  DeviceInfo info{.ordinal = ordinal,
                  .name = properties.name,
                  .compute_capability = properties.major * 10 + properties.minor,
                  .multiprocessors = properties.multiProcessorCount,
                  .memory_bytes = properties.totalGlobalMem,
                  .l2_bytes = static_cast<std::size_t>(properties.l2CacheSize),
                  .shared_bytes_per_block = properties.sharedMemPerBlockOptin};
  if (info.compute_capability < kOldestCapability) {
    return absl::UnimplementedError(
        absl::StrCat("GPU ", ordinal, " (", info.name, ") is older than compute capability 8.0"));
  }
  return info;
}

absl::Status UseDevice(int ordinal) {
  return CudaStatus(cudaSetDevice(ordinal), absl::StrCat("use of GPU ", ordinal));
}

}  // namespace kvferry::kernels
