#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvferry::transport {

// What a peer must know of a UCX transport; travels inside mTLS (docs/protocol.md, "UCX").
struct UcxAddress {
  std::uint64_t host = 0;      // the same for all processes that can map each other's device memory
  std::uint64_t process = 0;   // another one in each
  bool device_memory = false;  // payloads may lie on a GPU
  std::string worker;          // as UCX packed it

  friend bool operator==(const UcxAddress&, const UcxAddress&) = default;
};

// Of this process. kInternal: the system does not say which one it is.
absl::StatusOr<UcxAddress> LocalUcxAddress(bool device_memory, std::string worker);

std::string PackAddress(const UcxAddress& address);
// kInvalidArgument: not an address of a UCX transport, or damaged.
absl::StatusOr<UcxAddress> UnpackAddress(std::string_view packed);

}  // namespace kvferry::transport
