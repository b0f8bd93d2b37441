#pragma once

#include <google/protobuf/duration.pb.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace kvferry::rpc {

// kInvalidArgument names `field`: negative, or outside what google.protobuf.Duration allows.
absl::StatusOr<absl::Duration> ToDuration(const std::string& field,
                                          const google::protobuf::Duration& message);
google::protobuf::Duration ToProto(absl::Duration duration);
// For people and tables; not checked.
inline double ToSeconds(const google::protobuf::Duration& message) {
  return static_cast<double>(message.seconds()) + message.nanos() * 1e-9;
}

// kInvalidArgument names `field`: not 16 bytes.
absl::StatusOr<TransferId> ToTransferId(const std::string& field, const std::string& bytes);

}  // namespace kvferry::rpc
