#pragma once

#include "absl/status/status.h"
#include "kvferry/v1/config.pb.h"

namespace kvferry::router {

// Fills absent fields with the defaults of config.proto and checks all. kInvalidArgument names
// path, value and what is allowed.
absl::Status CompleteConfig(v1::RouterConfig& config);

}  // namespace kvferry::router
