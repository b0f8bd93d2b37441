#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

// Work that was enqueued once and can be launched again with one call. Move-only. Thread: one at a
// time.
class Graph {
 public:
  // What `enqueue` puts on `stream` is captured, not run. It may not wait for the stream or
  // allocate device memory. Its error, or that of CUDA; the stream can be used again then.
  static absl::StatusOr<Graph> Capture(Stream& stream,
                                       const std::function<absl::Status()>& enqueue);

  Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~Graph();

  absl::Status Launch(Stream& stream) const;

 private:
  explicit Graph(cudaGraphExec_t graph) : graph_(graph) {}

  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace kvferry::kernels
