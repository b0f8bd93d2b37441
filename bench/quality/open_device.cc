#include "bench/quality/open_device.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/quality/host_device.h"
#include "common/device_name.h"
#include "common/status_macros.h"
#include "kvcodec/cpu/cpu_backend.h"

#if KVFERRY_CUDA
#include "bench/quality/gpu_device.h"
#endif

namespace kvferry::bench {

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const model::LoadOptions& options) {
  KVF_ASSIGN_OR_RETURN(const std::optional<int> gpu, GpuOrdinal(options.device));
  if (gpu.has_value()) {
#if KVFERRY_CUDA
    return OpenGpuDevice(options, *gpu);
#else
    return absl::UnimplementedError(absl::StrCat(
        "device \"", options.device,
        "\", but this program was built without CUDA; configure it with -DKVFERRY_CUDA=ON"));
#endif
  }
  KVF_ASSIGN_OR_RETURN(auto model, model::Model::Load(options));
  KVF_ASSIGN_OR_RETURN(auto backend, codec::CreateCpuBackend({.threads = options.threads}));
  return HostDevice::Create(std::move(model), std::move(backend));
}

}  // namespace kvferry::bench
