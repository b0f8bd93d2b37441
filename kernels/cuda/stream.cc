#include "kernels/cuda/stream.h"

#include "common/status_macros.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/status.h"

namespace kvferry::kernels {

absl::StatusOr<Stream> Stream::Create(int priority) {
  cudaStream_t stream = nullptr;
  KVF_RETURN_IF_ERROR(CudaStatus(
      cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, priority), "new stream"));
  return Stream(stream);
}

Stream::~Stream() {
  // Fails only when the context is lost, which the last Synchronize has said.
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status Stream::Synchronize() {
  return CudaStatus(cudaStreamSynchronize(stream_), "wait for a stream");
}

absl::Status Stream::Wait(const Event& event) {
  return CudaStatus(cudaStreamWaitEvent(stream_, event.get(), 0), "cudaStreamWaitEvent");
}

}  // namespace kvferry::kernels
