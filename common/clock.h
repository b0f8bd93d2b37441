#pragma once

#include "absl/time/time.h"

namespace kvferry {

// Monotonic time since an arbitrary start of this process. Never sent to a peer: durations are.
using MonoTime = absl::Duration;

// Injected wherever a deadline is kept, so that tests step time by hand. Thread: any.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonoTime Now() const = 0;

  // The process's steady clock; lives for the whole process.
  static const Clock& Steady();
};

}  // namespace kvferry
