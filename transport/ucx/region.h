#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "common/device_memory.h"
#include "transport/transport.h"

namespace kvferry::transport {

// Memory that UCX has registered. Dies before `context`, and device memory before `memory`.
// kResourceExhausted: no memory. kFailedPrecondition: UCX takes device memory for host memory.
absl::StatusOr<std::unique_ptr<Region>> CreateHostRegion(ucp_context_h context, std::size_t bytes);
absl::StatusOr<std::unique_ptr<Region>> CreateDeviceRegion(ucp_context_h context,
                                                           DeviceMemory& memory, std::size_t bytes);

}  // namespace kvferry::transport
