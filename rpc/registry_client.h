#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvferry/v1/registry.pb.h"
#include "rpc/credentials.h"

namespace kvferry::rpc {

// A worker's side of the registry: one Attach stream per router, kept open for ever (reconnects
// with backoff of 0.1 to 2 s). A router that answers pings but does not welcome the worker within
// `welcome_limit` is tried again like a lost one. Thread: any. The callbacks run on gRPC threads,
// one at a time, and must not block.
class RegistryClient {
 public:
  struct Callbacks {
    std::function<v1::Load()> load;                         // what to report now
    std::function<void(const v1::RouterCommand&)> command;  // Drain, Release, Peers
    std::function<void(const std::string& router, const absl::Status&)>
        refused;  // kFailedPrecondition: another fingerprint
  };
  static std::unique_ptr<RegistryClient> Start(std::vector<std::string> router_addresses,
                                               const Credentials& credentials, const v1::Join& join,
                                               const Callbacks& callbacks,
                                               absl::Duration welcome_limit = absl::Seconds(5));
  virtual ~RegistryClient() = default;
  // Sends Leaving on every stream and ends them. Idempotent.
  virtual void Leave() = 0;
  // Reports load now instead of at the next interval.
  virtual void ReportSoon() = 0;
};

}  // namespace kvferry::rpc
