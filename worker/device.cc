#include "worker/device.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/device_name.h"
#include "common/log.h"
#include "common/status_macros.h"
#if KVFERRY_CUDA
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_memory.h"
#endif

namespace kvferry::worker {

absl::StatusOr<Device> OpenDevice(const std::string& name, bool payloads_on_gpu,
                                  int stream_priority) {
  Device device;
  KVF_ASSIGN_OR_RETURN(device.gpu, GpuOrdinal(name));
  if (!device.gpu.has_value()) {
    if (!payloads_on_gpu) return device;
    return absl::FailedPreconditionError(absl::StrCat(
        "transport.memory is \"cuda\", but model.device is \"", name, "\", not a GPU"));
  }
#if KVFERRY_CUDA
  KVF_ASSIGN_OR_RETURN(const kernels::DeviceInfo info, kernels::GetDevice(*device.gpu));
  KVF_RETURN_IF_ERROR(kernels::UseDevice(*device.gpu));
  KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create(stream_priority));
  Log(LogLevel::kInfo, "device", {{"device", name}, {"gpu", info.name}});
  device.model_stream = stream.get();
  device.stream = std::make_unique<kernels::Stream>(std::move(stream));
  if (payloads_on_gpu) {
    KVF_ASSIGN_OR_RETURN(device.memory, kernels::CreateDeviceMemory(*device.gpu));
  }
  return device;
#else
  static_cast<void>(stream_priority);
  return absl::UnimplementedError(absl::StrCat(
      "model.device is \"", name,
      "\", but this program was built without CUDA; configure it with -DKVFERRY_CUDA=ON"));
#endif
}

std::function<absl::Status()> ContextCheck(const Device& device) {
#if KVFERRY_CUDA
  if (device.gpu.has_value()) return [gpu = *device.gpu] { return kernels::CheckContext(gpu); };
#else
  static_cast<void>(device);
#endif
  return {};
}

}  // namespace kvferry::worker
