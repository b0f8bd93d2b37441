#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace kvferry {

// What other threads ask of an event loop, and when: a queue with an event fd to sleep on.
// Thread: Push any; the rest the loop's.
class WorkQueue {
 public:
  static absl::StatusOr<std::unique_ptr<WorkQueue>> Create(const Clock& clock);
  ~WorkQueue();

  // Runs `work` on the loop's thread, not before `delay` has passed. Dropped when the queue is
  // closed.
  void Push(std::function<void()> work, absl::Duration delay = absl::ZeroDuration());
  // Runs what is due. True when there was something.
  bool RunDue();
  // How long until the next work is due; infinite when there is none.
  absl::Duration UntilNext() const;
  // Readable when something new has been pushed; Drain makes it unreadable again.
  int event_fd() const { return event_fd_; }
  void Drain();
  // Drops what is left, and everything pushed later.
  void Close();

 private:
  WorkQueue(int event_fd, const Clock& clock) : event_fd_(event_fd), clock_(clock) {}

  const int event_fd_;
  const Clock& clock_;
  mutable absl::Mutex mutex_;
  std::multimap<MonoTime, std::function<void()>> work_
      ABSL_GUARDED_BY(mutex_);  // equal times keep their order
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvferry
