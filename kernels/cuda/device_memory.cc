#include "kernels/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {
namespace {

class CudaDeviceMemory final : public DeviceMemory {
 public:
  CudaDeviceMemory(int ordinal, std::uint64_t id, std::vector<std::uint64_t> unreachable,
                   Stream stream)
      : ordinal_(ordinal),
        id_(id),
        unreachable_(std::move(unreachable)),
        stream_(std::move(stream)) {}

  std::string name() const override { return absl::StrCat("cuda:", ordinal_); }
  std::uint64_t id() const override { return id_; }
  std::vector<std::uint64_t> unreachable() const override { return unreachable_; }
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
  const std::uint64_t id_;
  const std::vector<std::uint64_t> unreachable_;
  absl::Mutex mutex_;
  Stream stream_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<std::uint64_t> IdOf(int ordinal) {
  cudaDeviceProp properties;
  KVF_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  std::array<std::uint64_t, 2> halves{};
  static_assert(sizeof(properties.uuid) == sizeof(halves));
  std::memcpy(halves.data(), &properties.uuid, sizeof(halves));
  return std::max(halves[0] ^ std::rotl(halves[1], 1), std::uint64_t{1});
}

absl::StatusOr<std::vector<std::uint64_t>> UnreachableOf(int ordinal) {
  std::vector<std::uint64_t> ids;
  for (int other = 0; other < DeviceCount(); ++other) {
    int access = 0;
    if (other == ordinal) continue;
    KVF_RETURN_IF_ERROR(CudaStatus(cudaDeviceCanAccessPeer(&access, ordinal, other),
                                   absl::StrCat("peer access of GPU ", ordinal)));
    if (access != 0) continue;
    KVF_ASSIGN_OR_RETURN(ids.emplace_back(), IdOf(other));
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemory>> CreateDeviceMemory(int ordinal) {
  KVF_RETURN_IF_ERROR(GetDevice(ordinal).status());
  KVF_RETURN_IF_ERROR(UseDevice(ordinal));
  KVF_ASSIGN_OR_RETURN(const std::uint64_t id, IdOf(ordinal));
  KVF_ASSIGN_OR_RETURN(std::vector<std::uint64_t> unreachable, UnreachableOf(ordinal));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  return std::make_unique<CudaDeviceMemory>(ordinal, id, std::move(unreachable), std::move(stream));
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
