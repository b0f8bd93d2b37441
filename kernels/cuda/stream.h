#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvferry::kernels {

class Event;

// A CUDA stream, owned, never the default one. Work on it runs in order; it waits for other streams
// only through Wait. Thread: one at a time.
class Stream {
 public:
  // On the calling thread's device. Lower `priority` numbers go first; 0 is the default.
  static absl::StatusOr<Stream> Create(int priority = 0);

  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();

  cudaStream_t get() const { return stream_; }

  // Blocks until all work so far is done. An error is that of any earlier kernel.
  absl::Status Synchronize();
  // What is enqueued from now on runs after `event`.
  absl::Status Wait(const Event& event);

 private:
  explicit Stream(cudaStream_t stream) : stream_(stream) {}

  cudaStream_t stream_ = nullptr;
};

}  // namespace kvferry::kernels
