// Workers on GPUs that die, with payloads from GPU to GPU: prefill on the first one, decode on the
// last one. With one GPU all are on it.
#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/status.h"
#include "tests/integration/worker_fault_suite.h"

namespace kvferry::testing {
namespace {

// Logits of attention with 16-bit queries and outputs on a GPU against fp32 on CPUs.
constexpr float kGpuLogitError = 0.15f;

absl::StatusOr<FaultDevices> Gpus() {
  KVF_RETURN_IF_ERROR(kernels::GetDevice(0).status());
  return FaultDevices{.prefill = "cuda:0",
                      .decode = absl::StrCat("cuda:", kernels::DeviceCount() - 1),
                      .logit_error = kGpuLogitError};
}

absl::StatusOr<std::uint64_t> BytesInUse() {
  std::uint64_t in_use = 0;
  for (int gpu = 0; gpu < kernels::DeviceCount(); ++gpu) {
    KVF_RETURN_IF_ERROR(kernels::UseDevice(gpu));
    std::size_t free = 0, total = 0;
    KVF_RETURN_IF_ERROR(kernels::CudaStatus(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
    in_use += total - free;
  }
  return in_use;
}

INSTANTIATE_TEST_SUITE_P(Gpu, WorkerFaultTest,
                         ::testing::Values(FaultSetup{
                             .name = "cuda", .devices = Gpus, .device_bytes_in_use = BytesInUse}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace kvferry::testing
