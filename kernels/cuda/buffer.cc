#include "kernels/cuda/buffer.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/cuda/status.h"

namespace kvferry::kernels {

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(std::size_t bytes) {
  if (bytes == 0) return DeviceBuffer();
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%d bytes of device memory asked for, %d of %d are free", bytes, free, total));
  }
  KVF_RETURN_IF_ERROR(CudaStatus(error, "cudaMalloc"));
  return DeviceBuffer(static_cast<std::byte*>(data), bytes);
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(std::size_t bytes) {
  if (bytes == 0) return PinnedBuffer();
  void* data = nullptr;
  KVF_RETURN_IF_ERROR(
      CudaStatus(cudaHostAlloc(&data, bytes, cudaHostAllocPortable | cudaHostAllocMapped),
                 absl::StrFormat("%d bytes of pinned host memory", bytes)));
  return PinnedBuffer(static_cast<std::byte*>(data), bytes);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

absl::StatusOr<RegisteredMemory> RegisteredMemory::Register(std::span<std::byte> memory) {
  if (memory.empty()) return RegisteredMemory(nullptr);
  const cudaError_t error = cudaHostRegister(memory.data(), memory.size(),
                                             cudaHostRegisterPortable | cudaHostRegisterMapped);
  if (error == cudaErrorHostMemoryAlreadyRegistered) {
    static_cast<void>(cudaGetLastError());  // said here, not by the next launch
    return RegisteredMemory(nullptr);
  }
  KVF_RETURN_IF_ERROR(
      CudaStatus(error, absl::StrFormat("page-lock of %d bytes of host memory", memory.size())));
  return RegisteredMemory(memory.data());
}

RegisteredMemory::~RegisteredMemory() {
  if (data_ != nullptr) cudaHostUnregister(data_);
}

absl::Status CopyAsync(void* to, const void* from, std::size_t bytes, Stream& stream) {
  return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()),
                    "cudaMemcpyAsync");
}

absl::Status FillAsync(void* to, std::byte value, std::size_t bytes, Stream& stream) {
  return CudaStatus(cudaMemsetAsync(to, std::to_integer<int>(value), bytes, stream.get()),
                    "cudaMemsetAsync");
}

}  // namespace kvferry::kernels
