#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/device_watch.h"
#include "decode_node/data_plane.h"
#include "kvferry/v1/config.pb.h"
#include "model/model.h"
#include "rpc/serving_node.h"

namespace kvferry::decode {

// What tests, benches and `kvferry serve` put in place of what the config names.
struct DecodeNodeParts {
  TransportFactory transport;           // empty: UCX
  std::unique_ptr<model::Model> model;  // null: model.path is loaded
  DeviceWatch::OnLost on_lost;          // hears of the loss of model.device, once
};

// A whole decode worker: model, codec backend, pool, data plane, engine, gRPC services, registry
// streams.
class DecodeNode : public rpc::ServingNode {
 public:
  // Serving and attached to the routers when it returns. Errors: what config, files, ports or the
  // transport refuse.
  static absl::StatusOr<std::unique_ptr<DecodeNode>> Create(v1::DecodeConfig config,
                                                            DecodeNodeParts parts = {});
  // Until nothing runs and every transfer is over. False: `limit` passed.
  virtual bool WaitIdle(absl::Duration limit) const = 0;
  bool idle() const override { return WaitIdle(absl::ZeroDuration()); }
};

}  // namespace kvferry::decode
