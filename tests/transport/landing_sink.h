#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "tests/fakes/wait_limit.h"
#include "transport/transport.h"

namespace kvferry::transport {

inline constexpr std::size_t kChunkBytes = 8 << 20;

// Lands payloads in slots of their own and checks that each ends exactly once, before its peer is
// lost.
class LandingSink : public MessageSink {
 public:
  void LandIn(std::span<std::byte> memory) {
    const absl::MutexLock lock(&mutex_);
    for (std::size_t at = 0; at + kChunkBytes <= memory.size(); at += kChunkBytes)
      free_.push_back(memory.subspan(at, kChunkBytes));
    slots_ = free_;
  }
  void OnMessage(PeerHandle, MessageType, std::span<const std::byte>) override {}
  Landing OnIncoming(PeerHandle, MessageType, std::span<const std::byte>, std::size_t) override {
    const absl::MutexLock lock(&mutex_);
    if (free_.empty()) return {};
    const std::span<std::byte> slot = free_.back();
    free_.pop_back();
    ++accepted_;
    return {slot, static_cast<std::uint64_t>(slot.data() - slots_.front().data())};
  }
  void OnPayload(PeerHandle, std::uint64_t cookie, const absl::Status& status) override {
    const absl::MutexLock lock(&mutex_);
    ++ended_;
    failed_ += status.ok() ? 0 : 1;
    free_.push_back({slots_.front().data() + cookie, kChunkBytes});
  }
  void OnPeerLost(PeerHandle, const absl::Status& why) override {
    const absl::MutexLock lock(&mutex_);
    ++lost_;
    why_ = why;
    open_at_loss_ = accepted_ - ended_;
  }

  bool AwaitAccepted(int count) {
    const absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return accepted_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&enough), fakes::kWaitLimit);
  }
  // Payloads that have ended, however.
  bool AwaitEnded(int count, absl::Duration limit) {
    const absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&enough), limit);
  }
  bool AwaitLost(absl::Duration limit) {
    const absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(
        absl::Condition(
            +[](LandingSink* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->lost_ > 0; },
            this),
        limit);
  }
  int open_at_loss() {
    const absl::MutexLock lock(&mutex_);
    return open_at_loss_;
  }
  int failed() {
    const absl::MutexLock lock(&mutex_);
    return failed_;
  }
  int lost() {
    const absl::MutexLock lock(&mutex_);
    return lost_;
  }
  absl::Status why() {
    const absl::MutexLock lock(&mutex_);
    return why_;
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::span<std::byte>> slots_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::span<std::byte>> free_ ABSL_GUARDED_BY(mutex_);
  int accepted_ ABSL_GUARDED_BY(mutex_) = 0;
  int ended_ ABSL_GUARDED_BY(mutex_) = 0;
  int failed_ ABSL_GUARDED_BY(mutex_) = 0;
  int lost_ ABSL_GUARDED_BY(mutex_) = 0;
  int open_at_loss_ ABSL_GUARDED_BY(mutex_) = -1;
  absl::Status why_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvferry::transport
