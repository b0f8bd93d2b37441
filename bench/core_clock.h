#pragma once

#include <ctime>

namespace kvferry::bench {

// Seconds that the calling thread has run: what one core takes, also while others share the
// machine.
inline double CoreSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace kvferry::bench
