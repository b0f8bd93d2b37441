#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "transport/transport.h"

namespace kvferry::transport {

// Host memory that UCX has registered. Dies before `context`.
// kResourceExhausted: no memory; else what UCX refuses.
absl::StatusOr<std::unique_ptr<Region>> CreateHostRegion(ucp_context_h context, std::size_t bytes);

}  // namespace kvferry::transport
