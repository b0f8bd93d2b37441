#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"

namespace kvferry::bench {

// At which clock the multiprocessors ran while something was measured: a GPU at its power limit
// lowers it, and arithmetic with it, but not its memory's.
class SmClock {
 public:
  static absl::StatusOr<SmClock> Create();

  // In the stream's order, which is waited for.
  absl::Status Start(kernels::Stream& stream);
  // Mean clock in GHz since Start, of those multiprocessors that both calls met.
  absl::StatusOr<double> Stop(kernels::Stream& stream);

 private:
  explicit SmClock(kernels::DeviceBuffer readings) : readings_(std::move(readings)) {}
  absl::Status Read(int which, kernels::Stream& stream);

  kernels::DeviceBuffer readings_;  // [start, stop][multiprocessor]: cycles and nanoseconds
};

}  // namespace kvferry::bench
