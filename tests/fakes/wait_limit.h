#pragma once

#include "absl/time/time.h"

namespace kvferry::fakes {

// How much more time a build with a sanitizer gets (cmake/KvferryTargets.cmake), for what a test
// waits for and for limits of the code under test that a slow machine must not reach.
#if defined(KVFERRY_TEST_SLOWDOWN)
inline constexpr int kSlowdown = KVFERRY_TEST_SLOWDOWN;
#else
inline constexpr int kSlowdown = 1;
#endif

// How long a test waits for what must happen, before it fails.
inline constexpr absl::Duration kWaitLimit = absl::Seconds(20 * kSlowdown);

}  // namespace kvferry::fakes
