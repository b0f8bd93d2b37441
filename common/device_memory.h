#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry {

// The memory of one GPU, for folders that do without CUDA (transport/);
// kernels/cuda/device_memory.h has it. Outlives what it has allocated. Thread: any.
class DeviceMemory {
 public:
  using Block = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

  virtual ~DeviceMemory() = default;

  // "cuda:0": for messages.
  virtual std::string name() const = 0;
  // Names the GPU, in the same way in every process of this host. Not 0.
  virtual std::uint64_t id() const = 0;
  // The others whose memory it has no access to. Of GPUs that this process does not see
  // (CUDA_VISIBLE_DEVICES) it cannot be said; CUDA maps their memory where it can.
  virtual std::vector<std::uint64_t> unreachable() const = 0;
  // Makes the GPU that of the calling thread.
  virtual absl::Status Use() = 0;
  // Zeroed and 256-byte aligned, of a kind that other processes of this host can map.
  // kResourceExhausted names the size.
  virtual absl::StatusOr<Block> Allocate(std::size_t bytes) = 0;
  // Whether `address` lies in device memory, of anybody.
  virtual bool Contains(const void* address) const = 0;
  // Between host and device; has happened when it returns.
  virtual absl::Status Copy(void* to, const void* from, std::size_t bytes) = 0;
};

}  // namespace kvferry
