#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "transport/pending_done.h"
#include "transport/rate_limit.h"
#include "transport/transport.h"

namespace kvferry::transport {

class UcxTransport;

// One message, until UCX has completed it.
struct SendOp {
  UcxTransport* transport = nullptr;
  PeerHandle peer{};
  MessageType type{};
  std::vector<std::byte> header;  // with the SenderPrefix
  std::span<const std::byte> payload;
  PendingDone done;
};

// Payloads that wait for the rate limit, in order. Thread: progress thread only.
class RateLimitedSends {
 public:
  explicit RateLimitedSends(std::uint64_t bytes_per_s) : limiter_(bytes_per_s) {}

  bool limited() const { return limiter_.limited(); }
  void Push(std::unique_ptr<SendOp> send) { waiting_.push_back(std::move(send)); }

  // The next one, or null: then `wait` says how long until it may leave, zero when there is none.
  std::unique_ptr<SendOp> Take(MonoTime now, absl::Duration& wait) {
    wait = absl::ZeroDuration();
    if (waiting_.empty()) return nullptr;
    wait = limiter_.Take(waiting_.front()->payload.size(), now);
    if (wait > absl::ZeroDuration()) return nullptr;
    std::unique_ptr<SendOp> send = std::move(waiting_.front());
    waiting_.pop_front();
    return send;
  }

  // Ends those that `drop` names with `why`; their callbacks may push again.
  void Drop(const absl::Status& why, const std::function<bool(const SendOp&)>& drop) {
    std::deque<std::unique_ptr<SendOp>> kept, dropped;
    for (std::unique_ptr<SendOp>& send : waiting_)
      (drop(*send) ? dropped : kept).push_back(std::move(send));
    waiting_ = std::move(kept);
    for (const std::unique_ptr<SendOp>& send : dropped) send->done(why);
  }

 private:
  RateLimit limiter_;
  std::deque<std::unique_ptr<SendOp>> waiting_;
};

}  // namespace kvferry::transport
