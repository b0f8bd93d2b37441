#pragma once

#include <utility>

#include "absl/status/status.h"
#include "transport/transport.h"

namespace kvferry::transport {

// Calls a SendDone exactly once: when told to, else with kCancelled when the message is dropped
// because the transport has stopped. Move-only. Thread: none; the owner serializes.
class PendingDone {
 public:
  PendingDone() = default;
  explicit PendingDone(SendDone done) : done_(std::move(done)) {}
  PendingDone(PendingDone&& other) noexcept : done_(std::exchange(other.done_, nullptr)) {}
  PendingDone& operator=(PendingDone&& other) noexcept {
    std::swap(done_, other.done_);
    return *this;
  }
  ~PendingDone() { (*this)(absl::CancelledError("the transport has stopped")); }

  void operator()(const absl::Status& status) {
    if (const SendDone done = std::exchange(done_, nullptr)) done(status);
  }

 private:
  SendDone done_;
};

}  // namespace kvferry::transport
