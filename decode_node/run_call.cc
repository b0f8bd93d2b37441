#include "decode_node/run_call.h"

#include <utility>

#include "rpc/status.h"

namespace kvferry::decode {

void RunCall::Start(absl::StatusOr<RunDemand> demand) {
  self_ = shared_from_this();
  const std::shared_ptr<RunCall> alive = self_;  // whatever ends meanwhile
  if (!demand.ok()) {
    Push(std::nullopt, rpc::ToGrpc(demand.status()));
    return;
  }
  demand_ = *std::move(demand);
  const absl::Status status =
      parts_.data_plane.OpenRun(demand_.id, demand_.epoch,
                                {.prompt_tokens = static_cast<std::uint32_t>(demand_.tokens.size()),
                                 .max_new_tokens = demand_.max_new_tokens},
                                alive);
  if (!status.ok()) {
    Push(std::nullopt, rpc::ToGrpc(status));
    return;
  }
  bool broken;
  {
    absl::MutexLock lock(&mutex_);
    opened_ = true;
    broken = broken_;
  }
  if (broken) GiveUp();
}

void RunCall::OnAdopted(AdoptedSequence sequence) {
  v1::TokenEvent event;
  event.mutable_adopted()->set_first_token(sequence.first_token);
  FillStats(sequence, sequence.transport, parts_.store.geometry(),
            *event.mutable_adopted()->mutable_handoff());
  Push(std::move(event), std::nullopt);
  SequenceRequest request{.id = demand_.id,
                          .cache = std::move(sequence.cache),
                          .tokens = demand_.tokens,
                          .sampling = demand_.sampling,
                          .max_new_tokens = static_cast<int>(demand_.max_new_tokens),
                          .stop_tokens = demand_.stop_tokens};
  request.tokens.push_back(sequence.first_token);
  parts_.engine.Submit(std::move(request), shared_from_this());
  // A cancel that came before Submit found nothing to cancel.
  absl::MutexLock lock(&mutex_);
  if (broken_) parts_.engine.Cancel(demand_.id, absl::CancelledError("the call was cancelled"));
}

void RunCall::OnFailed(const absl::Status& why) {
  Push(std::nullopt, rpc::ToGrpc(why));
  absl::MutexLock lock(&mutex_);
  broken_ = true;
  parts_.engine.Cancel(demand_.id, why);
}

void RunCall::OnToken(std::uint32_t position, std::int32_t id) {
  v1::TokenEvent event;
  event.mutable_token()->set_position(position);
  event.mutable_token()->set_id(id);
  Push(std::move(event), std::nullopt);
}

void RunCall::OnFinished(const absl::Status& status, bool stop_token) {
  parts_.data_plane.Finish(demand_.id);
  if (!status.ok()) {
    Push(std::nullopt, rpc::ToGrpc(status));
    return;
  }
  v1::TokenEvent event;
  event.mutable_finished()->set_stop_token(stop_token);
  Push(std::move(event), grpc::Status::OK);
}

void RunCall::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) events_.clear();
  }
  if (!ok) GiveUp();
  Pump();
}

void RunCall::OnCancel() { GiveUp(); }

// The caller is gone: whatever the transfer has reached ends.
void RunCall::GiveUp() {
  const absl::Status why = absl::CancelledError("the call was cancelled or broke");
  bool opened;
  {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
    opened = opened_;
  }
  if (opened) {
    parts_.data_plane.Release(demand_.id, demand_.epoch, why);
    parts_.engine.Cancel(demand_.id, why);
  }
  Push(std::nullopt, rpc::ToGrpc(why));
}

void RunCall::Push(std::optional<v1::TokenEvent> event, std::optional<grpc::Status> end) {
  {
    absl::MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    if (event.has_value()) events_.push_back(*std::move(event));
    if (end.has_value()) end_ = std::move(end);
  }
  Pump();
}

// Starts the next operation when none runs. At most one thread gets past the mutex with work.
void RunCall::Pump() {
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

}  // namespace kvferry::decode
