#pragma once

#include <ucp/api/ucp.h>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/work_queue.h"

namespace kvferry::transport {

// Drives a UCX worker and a queue of work from one thread: polls while something happens and for a
// while after, then sleeps until UCX, the queue or a timer wakes it. Waking costs tens of
// microseconds on either side of a connection, several times per chunk; polling costs a core that
// nobody else wants, since a thread that polls yields.
// Thread: one.
class Progress {
 public:
  // `worker` has an event descriptor, `fd`; it, the queue and the clock outlive this.
  // poll: how long to poll after the last event.
  Progress(ucp_worker_h worker, int fd, WorkQueue& work, const Clock& clock, absl::Duration poll)
      : worker_(worker), fd_(fd), work_(work), clock_(clock), poll_(poll) {}

  // Runs the work that is due, then lets UCX progress, so much at most that the caller has its
  // turn.
  void Run();
  // Returns when there may be something to run again. poll_at_least: instead of a shorter `poll`.
  void Rest(absl::Duration poll_at_least = absl::ZeroDuration());

 private:
  void Sleep();

  const ucp_worker_h worker_;
  const int fd_;
  WorkQueue& work_;
  const Clock& clock_;
  const absl::Duration poll_;
  MonoTime last_event_ = absl::ZeroDuration();
};

}  // namespace kvferry::transport
