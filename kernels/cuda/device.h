#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry::kernels {

// What a kernel's launch depends on.
struct DeviceInfo {
  int ordinal = 0;
  std::string name;            // "NVIDIA H200"
  int compute_capability = 0;  // 90 for 9.0
  int multiprocessors = 0;
  std::size_t memory_bytes = 0;
  std::size_t l2_bytes = 0;
  std::size_t shared_bytes_per_block = 0;  // the most that a block can opt in to
};

// Number of GPUs that this process can use; 0 without a driver.
int DeviceCount();

// kUnavailable: no such GPU or no driver, with what to install. kUnimplemented: older than sm_80.
absl::StatusOr<DeviceInfo> GetDevice(int ordinal);

// Makes `ordinal` the device of the calling thread: of all that it allocates, creates and launches
// from now on. A thread that serves one GPU calls this once at its start.
absl::Status UseDevice(int ordinal);

}  // namespace kvferry::kernels
