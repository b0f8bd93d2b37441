#pragma once

#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace kvferry::codec::cpu {

// Threads that share the items of one call and sleep between calls. The caller always works too, so
// a pool of zero helpers is a plain loop, and a call never waits for a helper that is busy
// elsewhere. Thread: any; several calls may run at once.
class WorkerPool {
 public:
  explicit WorkerPool(int helpers);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Calls work(item) once for every item of [0, items), in any order and on any thread; returns
  // when all have returned.
  void Run(int items, absl::FunctionRef<void(int)> work);

 private:
  struct Job {
    absl::FunctionRef<void(int)> work;
    int items = 0;
    int next = 0;      // first item that nobody took
    int finished = 0;  // items whose work has returned
    absl::CondVar done;
  };

  // Takes and runs one item of `job`, which has one left.
  void RunOne(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HelperLoop();

  absl::Mutex mutex_;
  absl::CondVar wake_;
  std::deque<Job*> jobs_ ABSL_GUARDED_BY(mutex_);  // that have items left
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> helpers_;
};

}  // namespace kvferry::codec::cpu
