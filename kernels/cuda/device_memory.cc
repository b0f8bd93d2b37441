#include "kernels/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {
namespace {

class CudaDeviceMemory final : public DeviceMemory {
 public:
  CudaDeviceMemory(int ordinal, Stream stream) : ordinal_(ordinal), stream_(std::move(stream)) {}

  std::string name() const override { return absl::StrCat("cuda:", ordinal_); }
  absl::Status Use() override { return UseDevice(ordinal_); }
  bool Contains(const void* address) const override { return IsDeviceMemory(address); }

  absl::StatusOr<Block> Allocate(std::size_t bytes) override {
    KVF_RETURN_IF_ERROR(UseDevice(ordinal_));
    KVF_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(bytes));
    {
      absl::MutexLock lock(&mutex_);
      KVF_RETURN_IF_ERROR(FillAsync(buffer.data(), std::byte{0}, bytes, stream_));
      KVF_RETURN_IF_ERROR(stream_.Synchronize());
    }
    std::byte* const data = buffer.data();
    // A deleter is copied: it shares the buffer with its copies.
    auto owner = std::make_shared<DeviceBuffer>(std::move(buffer));
    return Block(data, [owner](std::byte*) mutable { owner.reset(); });
  }

  absl::Status Copy(void* to, const void* from, std::size_t bytes) override {
    KVF_RETURN_IF_ERROR(UseDevice(ordinal_));
    absl::MutexLock lock(&mutex_);
    const absl::Status enqueued = CopyAsync(to, from, bytes, stream_);
    const absl::Status done = stream_.Synchronize();
    return enqueued.ok() ? done : enqueued;
  }

 private:
  const int ordinal_;
  absl::Mutex mutex_;
  Stream stream_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemory>> CreateDeviceMemory(int ordinal) {
  KVF_RETURN_IF_ERROR(GetDevice(ordinal).status());
  KVF_RETURN_IF_ERROR(UseDevice(ordinal));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  return std::make_unique<CudaDeviceMemory>(ordinal, std::move(stream));
}

bool IsDeviceMemory(const void* address) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, address) == cudaSuccess) {
    return attributes.type == cudaMemoryTypeDevice;
  }
  cudaGetLastError();  // else the next launch reports it
  return false;
}

}  // namespace kvferry::kernels
