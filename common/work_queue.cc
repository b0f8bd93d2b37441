#include "common/work_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace kvferry {

absl::StatusOr<std::unique_ptr<WorkQueue>> WorkQueue::Create(const Clock& clock) {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, "eventfd of an event loop");
  return std::unique_ptr<WorkQueue>(new WorkQueue(fd, clock));
}

WorkQueue::~WorkQueue() { close(event_fd_); }

void WorkQueue::Push(std::function<void()> work, absl::Duration delay) {
  {
    const absl::MutexLock lock(&mutex_);
    if (closed_) return;
    work_.emplace(clock_.Now() + delay, std::move(work));
  }
  const std::uint64_t one = 1;
  // Cannot fail but when the counter is full, and then the thread is awake anyway.
  [[maybe_unused]] const ssize_t written = write(event_fd_, &one, sizeof(one));
}

bool WorkQueue::RunDue() {
  std::vector<std::function<void()>> due;
  {
    const absl::MutexLock lock(&mutex_);
    const auto end = work_.upper_bound(clock_.Now());
    for (auto it = work_.begin(); it != end; ++it) due.push_back(std::move(it->second));
    work_.erase(work_.begin(), end);
  }
  for (const std::function<void()>& work : due) work();
  return !due.empty();
}

absl::Duration WorkQueue::UntilNext() const {
  const absl::MutexLock lock(&mutex_);
  return work_.empty() ? absl::InfiniteDuration() : work_.begin()->first - clock_.Now();
}

void WorkQueue::Drain() {
  std::uint64_t count;
  [[maybe_unused]] const ssize_t got = read(event_fd_, &count, sizeof(count));
}

void WorkQueue::Close() {
  std::multimap<MonoTime, std::function<void()>> dropped;
  const absl::MutexLock lock(&mutex_);
  closed_ = true;
  dropped.swap(work_);
}

}  // namespace kvferry
