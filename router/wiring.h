#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvferry/v1/config.pb.h"
#include "rpc/serving_node.h"

namespace kvferry::router {

// A whole router: tokenizer, registry, engine, gRPC services.
class RouterNode : public rpc::ServingNode {
 public:
  // Serving when it returns. Errors: what config, files or ports refuse.
  static absl::StatusOr<std::unique_ptr<RouterNode>> Create(v1::RouterConfig config);
};

}  // namespace kvferry::router
