#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace kvferry::model {

// Where LibTorch works: the CPU, or a GPU and a stream of it that is not LibTorch's own.
class TorchDevice {
 public:
  // name: "cpu" or "cuda:N". stream: a cudaStream_t of that GPU, which outlives this; null on CPUs.
  // Loads LibTorch's CUDA part when it is needed, so that a program without a GPU starts without
  // it. kInvalidArgument: another name. kUnavailable: no CUDA part, driver or such GPU.
  static absl::StatusOr<TorchDevice> Open(const std::string& name, void* stream);

  c10::Device device() const { return device_; }

  // What LibTorch does on this thread while a Scope lives goes to the device's stream.
  class Scope {
   public:
    explicit Scope(const TorchDevice& device);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    std::optional<c10::Stream> before_;
    c10::Device device_before_;
  };

 private:
  TorchDevice(c10::Device device, std::optional<c10::Stream> stream)
      : device_(device), stream_(stream) {}

  c10::Device device_;
  std::optional<c10::Stream> stream_;
};

}  // namespace kvferry::model
