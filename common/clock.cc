#include "common/clock.h"

#include <chrono>

namespace kvferry {
namespace {

class SteadyClock : public Clock {
 public:
  MonoTime Now() const override {
    return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace

const Clock& Clock::Steady() {
  static const SteadyClock clock;
  return clock;
}

}  // namespace kvferry
