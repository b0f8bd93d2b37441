#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/device_memory.h"
#include "transport/transport.h"

namespace kvferry::transport {

struct UcxOptions {
  // UCX settings without the UCX_ prefix, passed to ucp_config_modify: a refused one is
  // kInvalidArgument.
  std::map<std::string, std::string> settings = {
      {"TLS", "tcp"}, {"TCP_TX_SEG_SIZE", "256k"}, {"TCP_RX_SEG_SIZE", "256k"}};
  std::string net_device;  // empty: UCX's choice
  // The GPU that payloads may lie on: cuda_copy and cuda_ipc are then added to TLS. Null: none.
  // Outlives the transport.
  DeviceMemory* device = nullptr;
  std::string required;  // the label of the only path that is taken; empty: the best there is
  std::uint64_t incarnation = 0;
  absl::Duration heartbeat_interval = absl::Milliseconds(250);
  absl::Duration silence_limit = absl::Milliseconds(1500);
  // How long the progress thread polls after the last event before it sleeps, yielding its core to
  // whoever wants it.
  absl::Duration poll = absl::Microseconds(50);
  std::uint64_t rate_limit_bytes_per_s = 0;  // of outgoing payload; 0 is off
};

// `sink` and `clock` outlive the transport. kFailedPrecondition: UCX below 1.17, a module that is
// missing, or a required path that this process has not got.
absl::StatusOr<std::unique_ptr<Transport>> CreateUcxTransport(const UcxOptions& options,
                                                              MessageSink* sink,
                                                              const Clock& clock);

}  // namespace kvferry::transport
