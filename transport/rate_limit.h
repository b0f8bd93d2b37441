#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"
#include "common/clock.h"

namespace kvferry::transport {

// A token bucket over bytes that lets a message go when the bucket is not in debt, however long the
// message is. Pure. Thread: none; the owner serializes.
class RateLimit {
 public:
  // 0 bytes per second: no limit.
  explicit RateLimit(std::uint64_t bytes_per_s) : bytes_per_s_(bytes_per_s) {}
  bool limited() const { return bytes_per_s_ != 0; }

  // Zero: the bytes may go now, and are paid for. Otherwise how long to wait before asking again.
  absl::Duration Take(std::uint64_t bytes, MonoTime now) {
    if (!limited()) return absl::ZeroDuration();
    if (now < free_at_) return free_at_ - now;
    free_at_ = std::max(free_at_, now) +
               absl::Seconds(static_cast<double>(bytes) / static_cast<double>(bytes_per_s_));
    return absl::ZeroDuration();
  }

 private:
  std::uint64_t bytes_per_s_;
  MonoTime free_at_ = -absl::InfiniteDuration();
};

}  // namespace kvferry::transport
