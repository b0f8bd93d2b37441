#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"

namespace kvferry::decode {

// Anonymous memory of this host: page-aligned, zero, taken from the system when it is first
// touched. Move-only. Thread: any.
class HostMemory {
 public:
  // kResourceExhausted: the system refuses; names the size.
  static absl::StatusOr<HostMemory> Map(std::size_t bytes);
  HostMemory() = default;
  HostMemory(HostMemory&& other) noexcept;
  HostMemory& operator=(HostMemory&& other) noexcept;
  ~HostMemory();

  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  HostMemory(std::byte* data, std::size_t size) : data_(data), size_(size) {}
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvferry::decode
