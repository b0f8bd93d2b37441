#pragma once

#include "common/clock.h"

namespace kvferry {

// Time that stands still until a test moves it. Thread: one at a time.
class FakeClock : public Clock {
 public:
  MonoTime Now() const override { return now_; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  MonoTime now_ = absl::Seconds(1000);
};

}  // namespace kvferry
