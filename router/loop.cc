#include "router/loop.h"

#include <algorithm>

#include "absl/synchronization/notification.h"

namespace kvferry::router {

Loop::Loop(const Clock& clock) : clock_(clock), thread_([this] { RunThread(); }) {}

Loop::~Loop() { Stop(); }

void Loop::Post(Task task) {
  const absl::MutexLock lock(&mutex_);
  if (!stopping_) posted_.push_back(std::move(task));
}

bool Loop::Run(Task task) {
  // Shared with the task: when the loop drops it, its destructor is what wakes the caller.
  struct Waiter {
    absl::Notification done;
    bool ran = false;
  };
  auto waiter = std::make_shared<Waiter>();
  struct Wake {
    std::shared_ptr<Waiter> waiter;
    explicit Wake(std::shared_ptr<Waiter> w) : waiter(std::move(w)) {}
    Wake(Wake&&) = default;
    ~Wake() {
      if (waiter != nullptr) waiter->done.Notify();
    }
  };
  Post([wake = Wake(waiter), task = std::move(task)]() mutable {
    task();
    wake.waiter->ran = true;
  });
  waiter->done.WaitForNotification();
  return waiter->ran;
}

Loop::TimerId Loop::At(MonoTime when, Task task) {
  const std::uint64_t id = next_timer_++;
  timers_.emplace(std::make_pair(when, id), std::move(task));
  timer_times_.emplace(id, when);
  return TimerId{id};
}

void Loop::CancelTimer(TimerId timer) {
  const auto id = static_cast<std::uint64_t>(timer);
  const auto found = timer_times_.find(id);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, id});
  timer_times_.erase(found);
}

void Loop::Stop() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void Loop::RunThread() {
  while (Task task = Next()) task();
}

Loop::Task Loop::Next() {
  while (true) {
    const absl::Duration until_timer =
        timers_.empty()
            ? absl::InfiniteDuration()
            : std::max(timers_.begin()->first.first - clock_.Now(), absl::ZeroDuration());
    {
      const absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &Loop::HasPosted), until_timer);
      if (!posted_.empty()) {
        Task task = std::move(posted_.front());
        posted_.pop_front();
        return task;
      }
      if (stopping_) return nullptr;
    }
    if (!timers_.empty() && timers_.begin()->first.first <= clock_.Now()) {
      auto first = timers_.extract(timers_.begin());
      timer_times_.erase(first.key().second);
      return std::move(first.mapped());
    }
  }
}

}  // namespace kvferry::router
