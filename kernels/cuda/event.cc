#include "kernels/cuda/event.h"

#include "common/status_macros.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

absl::StatusOr<Event> Event::Create(bool timing) {
  cudaEvent_t event = nullptr;
  const unsigned flags = timing ? cudaEventDefault : cudaEventDisableTiming;
  KVF_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, flags), "new event"));
  return Event(event);
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::Status Event::Record(Stream& stream) {
  return CudaStatus(cudaEventRecord(event_, stream.get()), "cudaEventRecord");
}

absl::StatusOr<bool> Event::Reached() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    cudaGetLastError();  // no error, but it would be the next launch's
    return false;
  }
  KVF_RETURN_IF_ERROR(CudaStatus(error, "cudaEventQuery"));
  return true;
}

absl::Status Event::Synchronize() const {
  return CudaStatus(cudaEventSynchronize(event_), "wait for an event");
}

absl::StatusOr<absl::Duration> Event::Since(const Event& begin) const {
  float milliseconds = 0;
  KVF_RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, begin.event_, event_),
                                 "cudaEventElapsedTime"));
  return absl::Milliseconds(static_cast<double>(milliseconds));
}

}  // namespace kvferry::kernels
