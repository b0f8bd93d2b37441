#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/device_memory.h"

namespace kvferry::transport {

// What a peer must know of a UCX transport; travels inside mTLS (docs/protocol.md, "UCX").
struct UcxAddress {
  std::uint64_t host = 0;     // the same for all processes that can map each other's device memory
  std::uint64_t process = 0;  // another one in each
  std::uint64_t gpu = 0;      // that payloads may lie on (DeviceMemory::id); 0: none
  std::vector<std::uint64_t> unreachable;  // other GPUs, to that one
  std::string worker;                      // as UCX packed it

  friend bool operator==(const UcxAddress&, const UcxAddress&) = default;
};

// Of this process. device: where payloads may lie, or null. kInternal: the system does not say
// which process it is.
absl::StatusOr<UcxAddress> LocalUcxAddress(const DeviceMemory* device, std::string worker);

std::string PackAddress(const UcxAddress& address);
// kInvalidArgument: not an address of a UCX transport, or damaged.
absl::StatusOr<UcxAddress> UnpackAddress(std::string_view packed);

}  // namespace kvferry::transport
