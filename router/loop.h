#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"

namespace kvferry::router {

// One thread that owns the router's state: what others have to say is posted to it, in order. It
// sleeps when there is nothing to do. Thread: Post any; timers the loop's own.
class Loop {
 public:
  using Task = absl::AnyInvocable<void()>;
  enum class TimerId : std::uint64_t { kNone = 0 };

  explicit Loop(const Clock& clock);
  ~Loop();  // Stop
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Dropped after Stop.
  void Post(Task task);
  // Runs `task` on the loop and waits for it; never on the loop's own thread. False: stopped, not
  // run.
  bool Run(Task task);

  // Tasks that were posted before a timer is due run before it.
  TimerId At(MonoTime when, Task task);
  // Nothing when it has already run.
  void CancelTimer(TimerId timer);

  // Runs what was posted before, then ends the thread. Idempotent.
  void Stop();

  const Clock& clock() const { return clock_; }
  MonoTime Now() const { return clock_.Now(); }

 private:
  void RunThread();
  // The next task that is due; null when stopped.
  Task Next();
  bool HasPosted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !posted_.empty() || stopping_;
  }

  const Clock& clock_;
  // The loop thread's own.
  std::map<std::pair<MonoTime, std::uint64_t>, Task> timers_;
  std::map<std::uint64_t, MonoTime> timer_times_;
  std::uint64_t next_timer_ = 1;

  absl::Mutex mutex_;
  std::deque<Task> posted_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvferry::router
