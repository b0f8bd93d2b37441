#include "kernels/cuda/graph.h"

#include "common/status_macros.h"
#include "kernels/cuda/status.h"

namespace kvferry::kernels {

absl::StatusOr<Graph> Graph::Capture(Stream& stream, const std::function<absl::Status()>& enqueue) {
  KVF_RETURN_IF_ERROR(CudaStatus(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeRelaxed),
                                 "begin of a capture"));
  const absl::Status enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream.get(), &graph);
  cudaGraphExec_t executable = nullptr;
  cudaError_t made = cudaSuccess;
  if (graph != nullptr) {
    if (enqueued.ok() && ended == cudaSuccess) made = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
  }
  if (!enqueued.ok() || ended != cudaSuccess || made != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // said here, not by the next launch
  }
  KVF_RETURN_IF_ERROR(enqueued);
  KVF_RETURN_IF_ERROR(CudaStatus(ended, "end of a capture"));
  KVF_RETURN_IF_ERROR(CudaStatus(made, "cudaGraphInstantiate"));
  return Graph(executable);
}

Graph::~Graph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

absl::Status Graph::Launch(Stream& stream) const {
  return CudaStatus(cudaGraphLaunch(graph_, stream.get()), "cudaGraphLaunch");
}

}  // namespace kvferry::kernels
