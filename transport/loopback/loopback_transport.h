#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "transport/transport.h"

namespace kvferry::transport {

// What a loopback network does to messages, each with its own probability in [0, 1], drawn from
// `seed`.
struct LoopbackFaults {
  std::uint64_t seed = 1;
  double lose = 0;
  double duplicate = 0;
  double reorder = 0;          // delayed behind later messages
  double corrupt_payload = 0;  // one bit flipped
  double corrupt_header = 0;
  absl::Duration delay;  // of every message
};

// A network inside one process: transports made on it reach each other. Thread: any; outlives its
// transports.
class LoopbackNetwork {
 public:
  virtual ~LoopbackNetwork() = default;
  static std::unique_ptr<LoopbackNetwork> Create();

  virtual void SetFaults(const LoopbackFaults& faults) = 0;
  // Messages between the two vanish in both directions until healed.
  virtual void Partition(std::string_view address_a, std::string_view address_b, bool cut) = 0;

  struct Options {
    std::uint64_t incarnation = 0;
    absl::Duration heartbeat_interval = absl::Milliseconds(250);
    absl::Duration silence_limit = absl::Milliseconds(1500);
  };
  virtual absl::StatusOr<std::unique_ptr<Transport>> CreateTransport(const Options& options,
                                                                     MessageSink* sink,
                                                                     const Clock& clock) = 0;
};

}  // namespace kvferry::transport
