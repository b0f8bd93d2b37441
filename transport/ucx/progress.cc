#include "transport/ucx/progress.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <array>

namespace kvferry::transport {
namespace {

constexpr int kBurst = 256;  // then work and timers have their turn

}  // namespace

void Progress::Run() {
  bool event = work_.RunDue();
  for (int i = 0; i < kBurst && ucp_worker_progress(worker_) != 0; ++i) event = true;
  if (event) last_event_ = clock_.Now();
}

void Progress::Rest(absl::Duration poll_at_least) {
  if (clock_.Now() - last_event_ < std::max(poll_, poll_at_least)) {
    sched_yield();
    return;
  }
  Sleep();
}

void Progress::Sleep() {
  work_.Drain();  // of what has run; what is pushed from here on wakes
  const absl::Duration left = std::min(work_.UntilNext(), absl::Seconds(1));
  if (left <= absl::ZeroDuration()) return;
  if (ucp_worker_arm(worker_) == UCS_ERR_BUSY) return;  // something has arrived meanwhile
  std::array<pollfd, 2> fds = {pollfd{fd_, POLLIN, 0}, pollfd{work_.event_fd(), POLLIN, 0}};
  const timespec timeout = absl::ToTimespec(left);
  ppoll(fds.data(), fds.size(), &timeout, nullptr);
}

}  // namespace kvferry::transport
