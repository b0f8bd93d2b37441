#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace kvferry {

// A thread that runs what it is given, in order. Thread: Push any; Stop the owner's.
class SerialWorker {
 public:
  SerialWorker();
  ~SerialWorker();
  // Dropped after Stop.
  void Push(std::function<void()> work);
  // Runs what was pushed before; nothing runs any more when it returns. Idempotent.
  void Stop();

 private:
  void Run();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> work_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvferry
