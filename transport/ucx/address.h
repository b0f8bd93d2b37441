#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvferry::transport {

// What a peer's Connect takes: 'KVU1', a CRC32C, and a worker's address as UCX packed it, since UCX
// does not check what it unpacks.
std::string WrapAddress(const std::string& worker_address);
// The worker's address. kInvalidArgument: not an address of a UCX transport, or damaged.
absl::StatusOr<std::string> UnwrapAddress(std::string_view wrapped);

}  // namespace kvferry::transport
