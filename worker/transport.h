#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/device_memory.h"
#include "common/ids.h"
#include "kvferry/v1/config.pb.h"
#include "transport/transport.h"

namespace kvferry::worker {

// Makes UCX transports with these settings, durations of which are there (rpc/config_checks.h).
//   device: where payloads may lie, or null. Outlives them.
std::function<absl::StatusOr<std::unique_ptr<transport::Transport>>(
    Incarnation, transport::MessageSink*, const Clock&)>
UcxFactory(const v1::TransportConfig& config, DeviceMemory* device);

}  // namespace kvferry::worker
