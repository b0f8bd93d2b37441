#include "kernels/cuda/context.h"

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/status.h"

namespace kvferry::kernels {

absl::Status CheckContext(int ordinal) {
  absl::Status status = UseDevice(ordinal);
  if (status.ok()) {
    // Waits for nothing, and meets the errors of what ran before.
    std::size_t free = 0, total = 0;
    status = CudaStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  }
  if (status.ok()) return status;
  return absl::UnavailableError(absl::StrCat("GPU ", ordinal, ": ", status.message()));
}

}  // namespace kvferry::kernels
