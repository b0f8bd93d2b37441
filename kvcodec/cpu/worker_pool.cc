#include "kvcodec/cpu/worker_pool.h"

#include <algorithm>

namespace kvferry::codec::cpu {

WorkerPool::WorkerPool(int helpers) {
  for (int i = 0; i < helpers; ++i) helpers_.emplace_back([this] { HelperLoop(); });
}

WorkerPool::~WorkerPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    wake_.SignalAll();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void WorkerPool::Run(int items, absl::FunctionRef<void(int)> work) {
  if (helpers_.empty() || items <= 1) {
    for (int item = 0; item < items; ++item) work(item);
    return;
  }
  Job job{.work = work, .items = items};
  absl::MutexLock lock(&mutex_);
  jobs_.push_back(&job);
  for (int i = std::min<int>(items - 1, static_cast<int>(helpers_.size())); i > 0; --i) {
    wake_.Signal();
  }
  while (job.next < job.items) RunOne(job);
  while (job.finished < job.items) job.done.Wait(&mutex_);
}

void WorkerPool::RunOne(Job& job) {
  const int item = job.next++;
  if (job.next == job.items) jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
  mutex_.Unlock();
  job.work(item);
  mutex_.Lock();
  if (++job.finished == job.items) job.done.Signal();
}

void WorkerPool::HelperLoop() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    while (jobs_.empty() && !stopping_) wake_.Wait(&mutex_);
    if (jobs_.empty()) return;
    RunOne(*jobs_.front());
  }
}

}  // namespace kvferry::codec::cpu
