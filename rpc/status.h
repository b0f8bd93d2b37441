#pragma once

#include <grpcpp/support/status.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace kvferry::rpc {

// Codes map one to one. A retry hint set by SetRetryHint travels as google.rpc.RetryInfo in the
// status details.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

void SetRetryHint(absl::Status& status, absl::Duration after);
std::optional<absl::Duration> RetryHint(const absl::Status& status);

}  // namespace kvferry::rpc
