#pragma once

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace kvferry {

// Tells an error of one piece of work from the loss of the device that it ran on, after which only
// another process can use the device: work that failed is then kUnavailable, so that it is run
// elsewhere, and the owner of this process learns of it once. Thread: any.
class DeviceWatch {
 public:
  // What is called with the reason of the loss; it must not block.
  using OnLost = std::function<void(const absl::Status&)>;

  // check: OK while the device can be used; empty: there is none to lose.
  DeviceWatch(std::function<absl::Status()> check, OnLost on_lost)
      : check_(std::move(check)), on_lost_(std::move(on_lost)) {}

  // What `status` means for whoever asked for the work: itself, or kUnavailable with the reason.
  absl::Status Explain(const absl::Status& status);

 private:
  const std::function<absl::Status()> check_;
  const OnLost on_lost_;
  absl::Mutex mutex_;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);  // OK while it is not
};

}  // namespace kvferry
