#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvferry::kernels {

class Stream;

// A point in a stream. Thread: one at a time.
class Event {
 public:
  // `timing`: Elapsed works; costs a little on the device.
  static absl::StatusOr<Event> Create(bool timing = false);

  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  cudaEvent_t get() const { return event_; }

  // Stands after all work that is in `stream` now; a later Record moves it.
  absl::Status Record(Stream& stream);
  // true: reached. Never blocks.
  absl::StatusOr<bool> Reached() const;
  absl::Status Synchronize() const;
  // From `begin` to this one; both reached and made with timing.
  absl::StatusOr<absl::Duration> Since(const Event& begin) const;

 private:
  explicit Event(cudaEvent_t event) : event_(event) {}

  cudaEvent_t event_ = nullptr;
};

}  // namespace kvferry::kernels
