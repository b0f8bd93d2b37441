#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/device_memory.h"

namespace kvferry::kernels {

// Memory of GPU `ordinal` for whoever does without CUDA. kUnavailable: no such GPU.
absl::StatusOr<std::unique_ptr<DeviceMemory>> CreateDeviceMemory(int ordinal);

// Whether a kernel of the calling thread's GPU finds `address` in device memory: false for host
// memory, page-locked or not.
bool IsDeviceMemory(const void* address);

}  // namespace kvferry::kernels
