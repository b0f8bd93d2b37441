#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/device_memory.h"
#if KVFERRY_CUDA
#include "kernels/cuda/stream.h"
#endif

namespace kvferry::worker {

// Where a worker computes: the CPUs or one GPU.
struct Device {
#if KVFERRY_CUDA
  std::unique_ptr<kernels::Stream> stream;  // the model's; null on CPUs. Outlives what works on it
#endif
  std::optional<int> gpu;
  void* model_stream = nullptr;          // as model::LoadOptions has it
  std::unique_ptr<DeviceMemory> memory;  // for payloads; null: they are in host memory
};

// Makes the GPU the calling thread's. name: of the configuration ("cpu", "cuda:0").
//   stream_priority: of the model's stream; lower numbers go first.
// kUnimplemented: this program was built without CUDA. kUnavailable: no such GPU.
// kFailedPrecondition: payloads cannot be on a GPU that the model is not on.
absl::StatusOr<Device> OpenDevice(const std::string& name, bool payloads_on_gpu,
                                  int stream_priority = 0);

// What DeviceWatch asks: whether the GPU's context still works. Empty on CPUs.
std::function<absl::Status()> ContextCheck(const Device& device);

}  // namespace kvferry::worker
