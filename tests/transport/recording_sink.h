#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "tests/fakes/wait_limit.h"
#include "transport/transport.h"

namespace kvferry::transport {

// A sink that lands payloads in one region and remembers what came. Thread: any.
class RecordingSink : public MessageSink {
 public:
  struct Message {
    PeerHandle from{};
    MessageType type{};
    std::string header;
    std::string payload;
    absl::Status status;
  };

  // Where payloads go; without it all are refused.
  void LandIn(std::span<std::byte> slot) {
    const absl::MutexLock lock(&mutex_);
    slot_ = slot;
  }
  void RefuseAll() {
    const absl::MutexLock lock(&mutex_);
    slot_ = {};
  }

  void OnMessage(PeerHandle from, MessageType type, std::span<const std::byte> header) override {
    const absl::MutexLock lock(&mutex_);
    messages_.push_back({from, type, Text(header), "", absl::OkStatus()});
  }
  Landing OnIncoming(PeerHandle from, MessageType type, std::span<const std::byte> header,
                     std::size_t payload_bytes) override {
    const absl::MutexLock lock(&mutex_);
    if (slot_.size() < payload_bytes) {
      ++refused_;
      return {};
    }
    pending_.push_back({from, type, Text(header), "", absl::OkStatus()});
    pending_bytes_.push_back(payload_bytes);
    return {slot_, pending_.size() - 1};
  }
  void OnPayload(PeerHandle, std::uint64_t cookie, const absl::Status& status) override {
    const absl::MutexLock lock(&mutex_);
    Message message = pending_.at(cookie);
    message.status = status;
    if (status.ok()) message.payload = Text(slot_.first(pending_bytes_.at(cookie)));
    messages_.push_back(std::move(message));
  }
  void OnPeerLost(PeerHandle peer, const absl::Status& why) override {
    const absl::MutexLock lock(&mutex_);
    lost_.emplace_back(peer, why);
  }

  // Waits until `count` messages have come; nullopt when the limit passes first.
  std::optional<std::vector<Message>> AwaitMessages(std::size_t count,
                                                    absl::Duration limit = fakes::kWaitLimit) {
    const absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return messages_.size() >= count;
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&enough), limit)) return std::nullopt;
    return messages_;
  }
  void ForgetMessages() {
    const absl::MutexLock lock(&mutex_);
    messages_.clear();
  }
  bool AwaitRefused(int count, absl::Duration limit = fakes::kWaitLimit) {
    const absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return refused_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&enough), limit);
  }
  std::optional<absl::Status> AwaitLost(PeerHandle peer, absl::Duration limit = fakes::kWaitLimit) {
    const absl::MutexLock lock(&mutex_);
    const auto gone = [this, peer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return FindLost(peer) != nullptr;
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&gone), limit)) return std::nullopt;
    return *FindLost(peer);
  }

 private:
  static std::string Text(std::span<const std::byte> bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  const absl::Status* FindLost(PeerHandle peer) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const auto& [handle, why] : lost_) {
      if (handle == peer) return &why;
    }
    return nullptr;
  }

  absl::Mutex mutex_;
  std::span<std::byte> slot_ ABSL_GUARDED_BY(mutex_);
  std::vector<Message> messages_ ABSL_GUARDED_BY(mutex_);
  std::vector<Message> pending_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::size_t> pending_bytes_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<PeerHandle, absl::Status>> lost_ ABSL_GUARDED_BY(mutex_);
  int refused_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvferry::transport
