#include <cstdint>
#include <utility>
#include <vector>

#include "bench/sm_clock.h"
#include "common/status_macros.h"
#include "kernels/cuda/status.h"

namespace kvferry::bench {
namespace {

constexpr int kMostMultiprocessors = 1024;
constexpr int kThreadBlocks = 4096;  // enough that each multiprocessor gets one

struct Reading {
  long long cycles;
  unsigned long long nanoseconds;
};

__global__ void read_clock_kernel(Reading* readings) {
  unsigned multiprocessor;
  unsigned long long nanoseconds;
  asm volatile("mov.u32 %0,%%smid;" : "=r"(multiprocessor));
  asm volatile("mov.u64 %0,%%globaltimer;" : "=l"(nanoseconds));
  if (multiprocessor < kMostMultiprocessors) {
    // Both words of whichever thread block comes last: 16 aligned bytes are stored at once.
    const longlong2 both = {clock64(), static_cast<long long>(nanoseconds)};
    *reinterpret_cast<longlong2*>(readings + multiprocessor) = both;
  }
}

}  // namespace

absl::StatusOr<SmClock> SmClock::Create() {
  KVF_ASSIGN_OR_RETURN(kernels::DeviceBuffer readings,
                       kernels::DeviceBuffer::Allocate(2 * kMostMultiprocessors * sizeof(Reading)));
  return SmClock(std::move(readings));
}

absl::Status SmClock::Read(int which, kernels::Stream& stream) {
  read_clock_kernel<<<kThreadBlocks, 1, 0, stream.get()>>>(readings_.as<Reading>() +
                                                           which * kMostMultiprocessors);
  KVF_RETURN_IF_ERROR(kernels::CudaStatus(cudaGetLastError(), "read_clock"));
  return stream.Synchronize();
}

absl::Status SmClock::Start(kernels::Stream& stream) {
  KVF_RETURN_IF_ERROR(kernels::CudaStatus(
      cudaMemsetAsync(readings_.data(), 0, readings_.bytes(), stream.get()), "readings"));
  return Read(0, stream);
}

absl::StatusOr<double> SmClock::Stop(kernels::Stream& stream) {
  KVF_RETURN_IF_ERROR(Read(1, stream));
  std::vector<Reading> readings(2 * kMostMultiprocessors);
  KVF_RETURN_IF_ERROR(
      kernels::CudaStatus(cudaMemcpy(readings.data(), readings_.data(),
                                     readings.size() * sizeof(Reading), cudaMemcpyDeviceToHost),
                          "readings"));
  double cycles = 0, nanoseconds = 0;
  for (int i = 0; i < kMostMultiprocessors; ++i) {
    const Reading &from = readings[i], &to = readings[kMostMultiprocessors + i];
    if (from.nanoseconds == 0 || to.nanoseconds <= from.nanoseconds) continue;
    cycles += static_cast<double>(to.cycles - from.cycles);
    nanoseconds += static_cast<double>(to.nanoseconds - from.nanoseconds);
  }
  if (nanoseconds == 0) return absl::InternalError("no multiprocessor has read its clock twice");
  return cycles / nanoseconds;
}

}  // namespace kvferry::bench
