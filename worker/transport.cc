#include "worker/transport.h"

#include <cstdint>

#include "rpc/convert.h"
#include "transport/ucx/ucx_transport.h"

namespace kvferry::worker {

std::function<absl::StatusOr<std::unique_ptr<transport::Transport>>(
    Incarnation, transport::MessageSink*, const Clock&)>
UcxFactory(const v1::TransportConfig& config, DeviceMemory* device) {
  transport::UcxOptions options;
  options.device = device;
  options.settings = {config.ucx().begin(), config.ucx().end()};
  options.net_device = config.net_device();
  options.required = config.required();
  options.heartbeat_interval = rpc::ToDuration("", config.heartbeat_interval()).value();
  options.silence_limit = rpc::ToDuration("", config.silence_limit()).value();
  options.rate_limit_bytes_per_s = config.rate_limit_bytes_per_s();
  return
      [options](Incarnation incarnation, transport::MessageSink* sink, const Clock& clock) mutable {
        options.incarnation = static_cast<std::uint64_t>(incarnation);
        return transport::CreateUcxTransport(options, sink, clock);
      };
}

}  // namespace kvferry::worker
