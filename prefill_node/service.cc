#include "prefill_node/service.h"

#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "rpc/convert.h"
#include "rpc/credentials.h"
#include "rpc/status.h"

namespace kvferry::prefill {
namespace {

// The hint that goes with a full queue.
constexpr absl::Duration kQueueRetry = absl::Milliseconds(250);

// One Prefill.Run call: a job's events become stream messages in order. Lives until gRPC's OnDone;
// the engine may hold it longer and is then not heard.
class RunCall final : public grpc::ServerWriteReactor<v1::PrefillEvent>,
                      public JobObserver,
                      public std::enable_shared_from_this<RunCall> {
 public:
  explicit RunCall(Engine& engine) : engine_(engine) {}

  void Start(absl::StatusOr<JobRequest> job, const DecodeTarget& target, Handshaker& handshaker) {
    self_ = shared_from_this();
    if (!job.ok()) {
      OnFinished(job.status());
      return;
    }
    {
      absl::MutexLock lock(&mutex_);
      job_ = {job->transfer_id, job->epoch};
    }
    handshaker.Ensure(
        target, [call = self_, request = *std::move(job)](const absl::Status& status) mutable {
          call->Submit(status, std::move(request));
        });
  }

  void OnProgress(std::uint32_t tokens_done) override {
    v1::PrefillEvent event;
    event.mutable_progress()->set_tokens_done(tokens_done);
    Push(std::move(event), std::nullopt);
  }
  void OnFirstToken(std::int32_t token, const HandoffSummary& so_far) override {
    v1::PrefillEvent event;
    event.mutable_first_token()->set_id(token);
    FillStats(so_far, *event.mutable_first_token()->mutable_handoff());
    Push(std::move(event), std::nullopt);
  }
  void OnFinished(const absl::StatusOr<HandoffSummary>& result) override {
    if (!result.ok()) {
      Push(std::nullopt, rpc::ToGrpc(result.status()));
      return;
    }
    v1::PrefillEvent event;
    FillStats(*result, *event.mutable_committed()->mutable_handoff());
    Push(std::move(event), grpc::Status::OK);
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) events_.clear();
    }
    if (!ok) AbortJob();
    Pump();
  }
  void OnCancel() override { AbortJob(); }
  void OnDone() override { self_.reset(); }

 private:
  struct JobName {
    TransferId id;
    Epoch epoch{};
  };

  void Submit(const absl::Status& connected, JobRequest request) {
    absl::Status status = connected;
    if (status.ok()) status = engine_.Submit(std::move(request), shared_from_this());
    if (status.ok()) return;
    if (absl::IsResourceExhausted(status)) rpc::SetRetryHint(status, kQueueRetry);
    OnFinished(status);
  }

  // The caller is gone: whatever the job has reached.
  void AbortJob() {
    const absl::Status why = absl::CancelledError("the call was cancelled or broke");
    std::optional<JobName> job;
    {
      absl::MutexLock lock(&mutex_);
      job = job_;
    }
    if (job.has_value()) engine_.Abort(job->id, job->epoch, why);
    OnFinished(why);
  }

  void Push(std::optional<v1::PrefillEvent> event, std::optional<grpc::Status> end) {
    {
      absl::MutexLock lock(&mutex_);
      if (end_.has_value()) return;
      if (event.has_value()) events_.push_back(*std::move(event));
      if (end.has_value()) end_ = std::move(end);
    }
    Pump();
  }

  // Starts the next operation when none runs. At most one thread gets past the mutex with work.
  void Pump() {
    std::optional<grpc::Status> finish;
    {
      absl::MutexLock lock(&mutex_);
      if (writing_ || finished_) return;
      if (!events_.empty()) {
        current_ = std::move(events_.front());
        events_.pop_front();
        writing_ = true;
      } else if (end_.has_value()) {
        finished_ = true;
        finish = *end_;
      } else {
        return;
      }
    }
    if (finish.has_value()) {
      Finish(*finish);  // may end in OnDone at once: nothing after it
    } else {
      StartWrite(&current_);
    }
  }

  Engine& engine_;
  std::shared_ptr<RunCall> self_;  // gRPC's share, given up in OnDone

  absl::Mutex mutex_;
  std::optional<JobName> job_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::PrefillEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  v1::PrefillEvent current_;  // the one that is being written
};

}  // namespace

grpc::ServerWriteReactor<v1::PrefillEvent>* PrefillService::Run(
    grpc::CallbackServerContext* context, const v1::PrefillRequest* request) {
  auto call = std::make_shared<RunCall>(engine_);
  const absl::Status allowed = rpc::CheckCaller(*context, {rpc::Role::kRouter});
  const v1::Grant& grant = request->grant();
  call->Start(allowed.ok() ? ToJobRequest(*request, limits_) : allowed,
              {.name = grant.decode_name(),
               .control_address = grant.decode_control_address(),
               .incarnation = Incarnation{grant.decode_incarnation()}},
              handshaker_);
  return call.get();
}

grpc::ServerUnaryReactor* PrefillService::Abort(grpc::CallbackServerContext* context,
                                                const v1::AbortRequest* request,
                                                v1::AbortResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = rpc::CheckCaller(*context, {rpc::Role::kRouter});
  if (status.ok()) {
    const absl::StatusOr<TransferId> id = rpc::ToTransferId("transfer_id", request->transfer_id());
    status = id.status();
    if (id.ok()) {
      engine_.Abort(*id, Epoch{request->epoch()}, absl::CancelledError("aborted by the router"));
    }
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest* request, v1::DrainResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status status = rpc::CheckCaller(*context, {rpc::Role::kClient, rpc::Role::kRouter});
  if (status.ok() && !request->worker().empty() && request->worker() != identity_.name()) {
    status = absl::InvalidArgumentError("worker: this is \"" + identity_.name() +
                                        "\"; leave the field empty, or ask the router");
  }
  if (status.ok()) drain_();
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::GetState(grpc::CallbackServerContext* context,
                                                 const v1::GetStateRequest*,
                                                 v1::GetStateResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status status = rpc::CheckCaller(*context, {rpc::Role::kClient, rpc::Role::kRouter});
  if (status.ok()) {
    const EngineLoad load = engine_.load();
    *response = identity_;
    *response->mutable_uptime() = rpc::ToProto(clock_.Now() - start_);
    response->set_draining(load.draining);
    response->set_queued_requests(load.queued_requests);
    response->set_running_requests(load.running_requests);
    for (const TransferSnapshot& transfer : data_plane_.Transfers()) {
      FillTransfer(transfer, engine_.RequestOf(transfer.id), *response->add_transfers());
    }
    for (const auto& [name, value] : metrics_.CounterValues()) {
      (*response->mutable_counters())[name] = value;
    }
  }
  reactor->Finish(rpc::ToGrpc(status));
  return reactor;
}

}  // namespace kvferry::prefill
