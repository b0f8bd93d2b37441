#include "rpc/registry_client.h"

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "common/string_view.h"
#include "kvferry/v1/registry.grpc.pb.h"
#include "rpc/status.h"

namespace kvferry::rpc {
namespace {

constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kMostBackoff = absl::Seconds(2);
constexpr absl::Duration kDefaultInterval = absl::Milliseconds(250);
constexpr absl::Duration kLeastInterval = absl::Milliseconds(10);
constexpr absl::Duration kMostInterval = absl::Seconds(10);

// What the router asks for, within reason: it may neither keep us busy nor silence us.
absl::Duration ReportInterval(const v1::Welcome& welcome) {
  const absl::Duration asked = absl::Seconds(welcome.report_interval().seconds()) +
                               absl::Nanoseconds(welcome.report_interval().nanos());
  if (asked <= absl::ZeroDuration()) return kDefaultInterval;
  return std::clamp(asked, kLeastInterval, kMostInterval);
}

// One Attach call. Its life: StartCall, reads and writes one at a time, OnDone once. Thread:
// gRPC's, and any for Report and Stop.
class AttachStream : public grpc::ClientBidiReactor<v1::WorkerReport, v1::RouterCommand> {
 public:
  struct Owner {
    virtual ~Owner() = default;
    virtual v1::Load CurrentLoad() = 0;
    virtual void OnCommand(const v1::RouterCommand& command) = 0;
    virtual void OnEnd(const absl::Status& status, bool was_welcome) = 0;
  };

  AttachStream(v1::Registry::Stub& stub, const v1::Join& join, absl::Duration welcome_limit,
               Owner& owner)
      : owner_(owner), interval_(welcome_limit) {
    *report_.mutable_join() = join;
    stub.async()->Attach(&context_, this);
    AddHold();  // for the timer, which starts writes outside of reactions
    StartRead(&command_);
    StartWrite(&report_);
    {
      const absl::MutexLock lock(&mutex_);
      ArmTimer();
    }
    StartCall();
  }

  // Asks for a report as soon as no write is under way.
  void Report() {
    const absl::MutexLock lock(&mutex_);
    wanted_ = true;
    MaybeWrite();
  }

  // Says goodbye and half-closes; a router that does not answer is cut off by Cancel.
  void Leave() {
    const absl::MutexLock lock(&mutex_);
    leaving_ = true;
    MaybeWrite();
  }

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      const absl::MutexLock lock(&mutex_);
      broken_ = true;
      ReleaseHold();
      return;
    }
    if (command_.has_welcome()) {
      const absl::MutexLock lock(&mutex_);
      welcome_ = true;
      interval_ = ReportInterval(command_.welcome());
      timer_.Cancel();  // it runs now, and again after the new interval
    } else {
      owner_.OnCommand(command_);
    }
    StartRead(&command_);
  }

  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) broken_ = true;
    MaybeWrite();
  }

  void OnDone(const grpc::Status& status) override {
    {
      const absl::MutexLock lock(&mutex_);
      done_ = true;
      end_status_ = unwelcome_ ? absl::DeadlineExceededError("no welcome from the router in time")
                               : FromGrpc(status);
      if (timer_armed_) {
        timer_.Cancel();  // its callback ends the stream: nothing of this may be deleted before it
                          // has run
        return;
      }
    }
    owner_.OnEnd(end_status_, welcome_);
  }

 private:
  void MaybeWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || broken_ || done_ || closed_) return;
    if (leaving_) {
      if (!goodbye_sent_) {
        goodbye_sent_ = true;
        report_.mutable_leaving();
        writing_ = true;
        StartWrite(&report_);
        return;
      }
      closed_ = true;
      StartWritesDone();
      return;
    }
    if (!wanted_ || !welcome_) return;
    wanted_ = false;
    *report_.mutable_load() = owner_.CurrentLoad();
    writing_ = true;
    StartWrite(&report_);
  }

  void ReleaseHold() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (std::exchange(held_, false)) RemoveHold();
  }

  void ArmTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    timer_armed_ = true;
    timer_.Set(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(interval_),
               [this](bool) { OnTimer(); });
  }

  void OnTimer() {
    {
      const absl::MutexLock lock(&mutex_);
      timer_armed_ = false;
      if (!done_) {
        if (!welcome_) {
          unwelcome_ = true;
          context_.TryCancel();
        }
        wanted_ = true;
        MaybeWrite();
        ArmTimer();
        return;
      }
    }
    owner_.OnEnd(end_status_, welcome_);
  }

  Owner& owner_;
  grpc::ClientContext context_;
  v1::WorkerReport report_;    // the write under way
  v1::RouterCommand command_;  // the read under way
  absl::Mutex mutex_;
  absl::Duration interval_ ABSL_GUARDED_BY(mutex_);  // until the welcome: how long to wait for it
  bool writing_ ABSL_GUARDED_BY(mutex_) = true;      // the join
  bool unwelcome_ ABSL_GUARDED_BY(mutex_) = false;   // given up for want of a welcome
  bool welcome_ = false;  // written under mutex_, read after the last callback
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  bool goodbye_sent_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool held_ ABSL_GUARDED_BY(mutex_) = true;
  bool timer_armed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_;  // written once, before OnEnd
  grpc::Alarm timer_;
};

// Keeps one router attached: a thread that opens a stream, sleeps until it ends, and tries again
// after a pause.
class RouterLink : public AttachStream::Owner {
 public:
  RouterLink(std::string address, const Credentials& credentials, const v1::Join& join,
             const RegistryClient::Callbacks& callbacks, absl::Duration welcome_limit)
      : address_(std::move(address)),
        join_(join),
        callbacks_(callbacks),
        welcome_limit_(welcome_limit),
        channel_(credentials.Connect(address_, Role::kRouter)),
        stub_(v1::Registry::NewStub(channel_)),
        thread_([this] { Run(); }) {}

  ~RouterLink() override {
    BeginLeave();
    {
      // A router that does not take its leave within a second is cut off.
      const absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &RouterLink::Ended), absl::Seconds(1));
      if (stream_ != nullptr && !ended_) stream_->Cancel();
    }
    thread_.join();
  }

  void BeginLeave() {
    const absl::MutexLock lock(&mutex_);
    leaving_ = true;
    if (stream_ != nullptr && !ended_) stream_->Leave();
  }

  void Report() {
    const absl::MutexLock lock(&mutex_);
    if (stream_ != nullptr && !ended_) stream_->Report();
  }

  v1::Load CurrentLoad() override { return callbacks_.load(); }
  void OnCommand(const v1::RouterCommand& command) override {
    if (callbacks_.command) callbacks_.command(command);
  }
  void OnEnd(const absl::Status& status, bool was_welcome) override {
    const absl::MutexLock lock(&mutex_);
    ended_ = true;
    end_status_ = status;
    end_was_welcome_ = was_welcome;
  }

 private:
  bool Ended() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ || stream_ == nullptr; }
  bool Leaving() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return leaving_; }

  void Run() {
    absl::Duration backoff = kFirstBackoff;
    while (true) {
      const absl::Status status = RunStream();
      std::unique_ptr<AttachStream> finished;
      bool was_welcome;
      {
        const absl::MutexLock lock(&mutex_);
        finished = std::move(stream_);
        was_welcome = end_was_welcome_;
        if (leaving_) return;
      }
      finished.reset();
      Explain(status, was_welcome);
      backoff = was_welcome ? kFirstBackoff : std::min(backoff * 2, kMostBackoff);
      if (absl::IsFailedPrecondition(status)) backoff = kMostBackoff;
      const absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(this, &RouterLink::Leaving), backoff)) return;
    }
  }

  absl::Status RunStream() {
    const absl::MutexLock lock(&mutex_);
    if (leaving_) return absl::CancelledError("leaving");
    ended_ = false;
    stream_ = std::make_unique<AttachStream>(*stub_, join_, welcome_limit_, *this);
    mutex_.Await(absl::Condition(&ended_));
    return end_status_;
  }

  // Once per kind of trouble, not at every try.
  void Explain(const absl::Status& status, bool was_welcome) {
    if (was_welcome) last_explained_.reset();
    if (last_explained_ == status.code()) return;
    last_explained_ = status.code();
    Log(LogLevel::kWarning, "router_lost", {{"router", address_}, {"why", status}});
    if (absl::IsFailedPrecondition(status) && callbacks_.refused)
      callbacks_.refused(address_, status);
  }

  const std::string address_;
  const v1::Join join_;
  const RegistryClient::Callbacks callbacks_;
  const absl::Duration welcome_limit_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Registry::Stub> stub_;
  std::optional<absl::StatusCode> last_explained_;  // the thread's own
  absl::Mutex mutex_;
  std::unique_ptr<AttachStream> stream_ ABSL_GUARDED_BY(mutex_);
  bool leaving_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = true;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
  bool end_was_welcome_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

class StreamingRegistryClient : public RegistryClient {
 public:
  StreamingRegistryClient(std::vector<std::string> addresses, const Credentials& credentials,
                          const v1::Join& join, const Callbacks& callbacks,
                          absl::Duration welcome_limit) {
    for (std::string& address : addresses) {
      links_.push_back(std::make_unique<RouterLink>(std::move(address), credentials, join,
                                                    callbacks, welcome_limit));
    }
  }
  void Leave() override {
    for (const auto& link : links_) link->BeginLeave();
  }
  void ReportSoon() override {
    for (const auto& link : links_) link->Report();
  }

 private:
  std::vector<std::unique_ptr<RouterLink>> links_;
};

}  // namespace

std::unique_ptr<RegistryClient> RegistryClient::Start(std::vector<std::string> router_addresses,
                                                      const Credentials& credentials,
                                                      const v1::Join& join,
                                                      const Callbacks& callbacks,
                                                      absl::Duration welcome_limit) {
  return std::make_unique<StreamingRegistryClient>(std::move(router_addresses), credentials, join,
                                                   callbacks, welcome_limit);
}

}  // namespace kvferry::rpc
