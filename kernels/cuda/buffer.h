#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

// Device memory, owned, from cudaMalloc alone: memory of the stream-ordered allocator cannot be
// shared with another process at speed. 256-byte aligned. Move-only; empty after a move.
class DeviceBuffer {
 public:
  // On the calling thread's device; contents are unspecified. bytes 0: an empty buffer.
  // kResourceExhausted names the size and what is free.
  static absl::StatusOr<DeviceBuffer> Allocate(std::size_t bytes);

  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  DeviceBuffer(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Host memory that the GPU reads and writes without staging, also with kernels (portable, mapped).
class PinnedBuffer {
 public:
  static absl::StatusOr<PinnedBuffer> Allocate(std::size_t bytes);

  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedBuffer();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  PinnedBuffer(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Host memory of somebody else, page-locked for as long as this lives: the GPU then reads and
// writes it without staging. Dies before the memory.
class RegisteredMemory {
 public:
  // Memory that is locked already (UCX does it where it has CUDA) stays as it is: whoever did it
  // keeps it so. kResourceExhausted: the system locks no more (ulimit -l).
  static absl::StatusOr<RegisteredMemory> Register(std::span<std::byte> memory);

  RegisteredMemory(RegisteredMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)) {}
  RegisteredMemory& operator=(RegisteredMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~RegisteredMemory();

 private:
  explicit RegisteredMemory(std::byte* data) : data_(data) {}

  std::byte* data_ = nullptr;
};

// Copies between host and device, or device and device, in `stream`'s order. With pageable host
// memory the call may block; `from` must stay unchanged and `to` alive until the stream is there.
absl::Status CopyAsync(void* to, const void* from, std::size_t bytes, Stream& stream);
// Sets every byte to `value`.
absl::Status FillAsync(void* to, std::byte value, std::size_t bytes, Stream& stream);

}  // namespace kvferry::kernels
