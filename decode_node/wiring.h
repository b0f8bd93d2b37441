#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "decode_node/data_plane.h"
#include "kvferry/v1/config.pb.h"
#include "model/model.h"

namespace kvferry::decode {

// What tests, benches and `kvferry serve` put in place of what the config names.
struct DecodeNodeParts {
  TransportFactory transport;           // empty: UCX
  std::unique_ptr<model::Model> model;  // null: model.path is loaded
};

// A whole decode worker: model, codec backend, pool, data plane, engine, gRPC services, registry
// streams. Several may live in one process. Thread: any.
class DecodeNode {
 public:
  // Serving and attached to the routers when it returns. Errors: what config, files, ports or the
  // transport refuse.
  static absl::StatusOr<std::unique_ptr<DecodeNode>> Create(v1::DecodeConfig config,
                                                            DecodeNodeParts parts = {});
  virtual ~DecodeNode() = default;  // Shutdown

  // host:port of the gRPC services, with the real port.
  virtual const std::string& address() const = 0;
  virtual Incarnation incarnation() const = 0;
  // Takes nothing new; what runs goes on.
  virtual void Drain() = 0;
  // Until nothing runs and every transfer is over. False: `limit` passed.
  virtual bool WaitIdle(absl::Duration limit) const = 0;
  // Leaves the routers, ends what still runs with kUnavailable, stops all threads. Idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace kvferry::decode
