#pragma once

#include <ucp/api/ucp.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// UCX's C handles as owning C++ values, and its errors as ours. Only transport/ucx includes this.
namespace kvferry::transport {

// "connect to decode-0: Endpoint timeout". Peer trouble is kUnavailable, the rest kInternal.
absl::Status FromUcs(ucs_status_t status, std::string_view what);

template <auto Destroy>
struct UcxDelete {
  template <typename T>
  void operator()(T* handle) const noexcept {
    Destroy(handle);
  }
};
using ContextPtr = std::unique_ptr<ucp_context, UcxDelete<ucp_cleanup>>;
using WorkerPtr = std::unique_ptr<ucp_worker, UcxDelete<ucp_worker_destroy>>;

// A context for Active Messages with the given settings. kInvalidArgument: a setting that UCX
// refuses, by name; kFailedPrecondition: UCX is too old, or is to know `device_memory` and has no
// CUDA.
absl::StatusOr<ContextPtr> MakeContext(const std::map<std::string, std::string>& settings,
                                       bool device_memory);
// A worker with a wake-up descriptor, for one thread at a time.
absl::StatusOr<WorkerPtr> MakeWorker(ucp_context_h context);
// The worker's address as UCX packs it.
absl::StatusOr<std::string> WorkerAddress(ucp_worker_h worker);
// A connection to the worker of `name`, who packed `address`. When it breaks, the progress of
// `worker` calls `on_error` with `arg`, which may not close it in there; it is the caller's to
// close in any case.
absl::StatusOr<ucp_ep_h> OpenEndpoint(ucp_worker_h worker, const std::string& address,
                                      std::string_view name, ucp_err_handler_cb_t on_error,
                                      void* arg);
// What UCX has chosen for a connection, for example {"tcp/lo", "cuda_ipc/cuda"}.
absl::StatusOr<std::vector<std::string>> EndpointLanes(ucp_ep_h endpoint);

}  // namespace kvferry::transport
