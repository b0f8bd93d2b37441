#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "kvferry/v1/config.pb.h"

namespace kvferry::router {

// A whole router: tokenizer, registry, engine, gRPC services. Several may live in one process.
// Thread: any.
class RouterNode {
 public:
  // Serving when it returns. Errors: what config, files or ports refuse.
  static absl::StatusOr<std::unique_ptr<RouterNode>> Create(v1::RouterConfig config);
  virtual ~RouterNode() = default;  // Shutdown

  // host:port of the gRPC services, with the real port.
  virtual const std::string& address() const = 0;
  virtual Incarnation incarnation() const = 0;
  // Takes nothing new; what runs goes on.
  virtual void Drain() = 0;
  // No request waits or runs.
  virtual bool idle() const = 0;
  // Ends what still runs with kUnavailable, lets go of the workers, stops all threads. Idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace kvferry::router
