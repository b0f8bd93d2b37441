#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"
#include "kvcodec/backend.h"

namespace kvferry::kernels {

// A quantizer of K and V in the memory of the calling thread's device. It works on a stream of its
// own beside `producer`, on which the model makes K and V: MarkReady notes where that one stands,
// and a view waits for its own mark alone. `producer` outlives it.
// Calls take turns, and return when the bytes are where they were wanted, in host memory or the
// device's. kUnavailable: no GPU.
absl::StatusOr<std::unique_ptr<codec::Quantizer>> CreateCudaQuantizer(Stream& producer);

}  // namespace kvferry::kernels
