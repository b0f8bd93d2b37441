#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "absl/status/status.h"

namespace kvferry::kernels {

// OK for cudaSuccess, else a status whose message is "WHAT: text of CUDA (name)".
//   kResourceExhausted: out of memory. kUnavailable: no usable device or driver.
//   kInvalidArgument: a value or configuration that CUDA refuses. kInternal: the rest; after an
//   error of a kernel (an illegal address) the whole context is lost, and so is the process.
absl::Status CudaStatus(cudaError_t error, std::string_view what);

// The error of the launch that came just before on this thread.
absl::Status LaunchStatus(std::string_view kernel);

}  // namespace kvferry::kernels
