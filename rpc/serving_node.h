#pragma once

#include <string>

#include "common/ids.h"

namespace kvferry::rpc {

// What a router, a prefill and a decode worker have in common, as the program around them sees it.
// Several may live in one process. Thread: any. The destructor shuts down.
class ServingNode {
 public:
  virtual ~ServingNode() = default;

  // host:port of the gRPC services, with the real port.
  virtual const std::string& address() const = 0;
  virtual Incarnation incarnation() const = 0;
  // Takes nothing new; what runs goes on.
  virtual void Drain() = 0;
  // No request waits or runs, and every transfer is over.
  virtual bool idle() const = 0;
  // Ends what still runs with kUnavailable, leaves its peers, stops all threads. Idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace kvferry::rpc
