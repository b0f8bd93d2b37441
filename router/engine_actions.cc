// What the engine does for a request's state machine: calls to workers, tokens to the observer.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/convert.h"
#include "router/engine.h"
#include "rpc/convert.h"

namespace kvferry::router {
namespace {

constexpr absl::Duration kGrantLease = absl::Seconds(30);

}  // namespace

void Engine::Apply(const RunPtr& run, const Request::Actions& actions) {
  for (const Request::Action& action : actions)
    std::visit([&](const auto& what) { Do(run, what); }, action);
}

void Engine::Do(const RunPtr& run, const Request::Enqueue& action) {
  run->not_before = action.not_before;
  queue_.emplace(run->order, run);
  run->queue_timer = loop_.At(
      action.deadline, [this, run] { Apply(run, run->machine.OnQueueTimeout(QueueError(*run))); });
  // The caller dispatches, or what it waits for does.
  DispatchAt(action.not_before);
}

void Engine::Do(const RunPtr& run, const Request::Reserve& action) {
  const Incarnation decode = run->machine.route().decode;
  v1::ReserveRequest request;
  request.set_request_id(run->spec.request_id);
  request.set_prompt_tokens(action.prompt_tokens);
  request.set_max_new_tokens(action.max_new_tokens);
  request.set_codec(run->spec.codec);
  *request.mutable_fingerprint() = fingerprint_;
  request.set_epoch(action.epoch);
  *request.mutable_lease() = rpc::ToProto(kGrantLease);
  run->reserve_call = FindLink(decode)->Reserve(
      request, [this, run, decode, serial = action.serial](absl::StatusOr<v1::Grant> grant) {
        OnReserveAnswer(run, serial, decode, std::move(grant));
      });
}

void Engine::OnReserveAnswer(const RunPtr& run, RouteSerial serial, Incarnation decode,
                             absl::StatusOr<v1::Grant> grant) {
  const bool wanted =
      run->machine.state() == Request::State::kReserving && run->machine.serial() == serial;
  if (!wanted) {
    WorkerLink* link = FindLink(decode);
    if (grant.ok() && link != nullptr) link->Release(*grant);
    return;
  }
  if (probe_ == run) probe_ = nullptr;
  run->reserve_call = nullptr;
  if (grant.ok()) {
    run->grant = *std::move(grant);
    Apply(run, run->machine.OnReserved(serial, loop_.Now()));
  } else {
    Apply(run, run->machine.OnReserveFailed(serial, grant.status(), loop_.Now()));
  }
  Dispatch();
}

void Engine::Do(const RunPtr& run, const Request::OpenCalls& action) {
  instruments_.attempts.Add();
  run->handoff = Handoff();  // of the last attempt
  if (!run->started) {
    run->started = true;
    run->observer->OnStart({.codec = run->grant->codec(),
                            .prompt_tokens = run->machine.prompt_tokens(),
                            .seed = run->spec.sampling.seed});
  }
  const RouteSerial serial = action.serial;
  const Route route = run->machine.route();
  run->decode_heard = false;
  run->decode_call =
      FindLink(route.decode)
          ->RunDecode(
              MakeRunRequest(run->spec, *run->grant, run->machine.tokens(), action.max_new_tokens),
              run->spec.deadline,
              {.event = [this, run,
                         serial](const auto& event) { OnDecodeEvent(run, serial, event); },
               .end =
                   [this, run, serial](const absl::Status& status) {
                     Apply(run, run->machine.OnDecodeEnded(serial, status, loop_.Now()));
                   }});
  run->prefill_call =
      FindLink(route.prefill)
          ->RunPrefill(
              MakePrefillRequest(run->spec, *run->grant, run->machine.tokens()), run->spec.deadline,
              {.event = [this, run,
                         serial](const auto& event) { OnPrefillEvent(run, serial, event); },
               .end =
                   [this, run, serial](const absl::Status& status) {
                     Apply(run, run->machine.OnPrefillEnded(serial, status, loop_.Now()));
                     if (run->machine.prefill_done()) GiveBack(run->prefill_share);
                   }});
}

void Engine::OnDecodeEvent(const RunPtr& run, RouteSerial serial, const v1::TokenEvent& event) {
  const MonoTime now = loop_.Now();
  run->decode_heard = true;
  switch (event.event_case()) {
    case v1::TokenEvent::kAdopted:
      FillHandoff(event.adopted().handoff(), run->handoff);
      Apply(run, run->machine.OnAdopted(serial, event.adopted().first_token(), now));
      return;
    case v1::TokenEvent::kToken:
      Apply(run, run->machine.OnToken(serial, event.token().position(), event.token().id(), now));
      return;
    case v1::TokenEvent::kFinished:
      Apply(run, run->machine.OnDecodeFinished(serial, event.finished().stop_token(), now));
      return;
    case v1::TokenEvent::EVENT_NOT_SET:
      return;
  }
}

void Engine::OnPrefillEvent(const RunPtr& run, RouteSerial serial, const v1::PrefillEvent& event) {
  switch (event.event_case()) {
    case v1::PrefillEvent::kFirstToken:
      FillHandoff(event.first_token().handoff(), run->handoff);
      Apply(run, run->machine.OnFirstToken(serial, event.first_token().id(), loop_.Now()));
      return;
    case v1::PrefillEvent::kCommitted:
      FillHandoff(event.committed().handoff(), run->handoff);
      Apply(run, run->machine.OnCommitted(serial));
      GiveBack(run->prefill_share);
      return;
    case v1::PrefillEvent::kProgress:
    case v1::PrefillEvent::EVENT_NOT_SET:
      return;
  }
}

void Engine::Do(const RunPtr& run, const Request::CloseCalls&) {
  if (probe_ == run) probe_ = nullptr;
  // A call that is broken early may never reach the worker, and then frees nothing there.
  WorkerLink* decode = FindLink(run->machine.route().decode);
  if (run->grant.has_value() && !run->decode_heard && decode != nullptr)
    decode->Release(*run->grant);
  for (std::shared_ptr<WorkerCall>* call : {&run->decode_call, &run->prefill_call}) {
    if (*call != nullptr) (*call)->Break();
    call->reset();
  }
  // A reservation under way is not broken: its answer tells what to release.
  run->reserve_call = nullptr;
  run->grant.reset();
  GiveBack(run->decode_share);
  GiveBack(run->prefill_share);
}

void Engine::Do(const RunPtr& run, const Request::Emit& action) {
  const MonoTime now = loop_.Now();
  if (!run->first_token.has_value()) {
    run->first_token = now;
    instruments_.first_token_seconds.Observe(absl::ToDoubleSeconds(now - run->submitted));
  } else {
    instruments_.token_seconds.Observe(absl::ToDoubleSeconds(now - *run->last_token));
  }
  run->last_token = now;
  instruments_.tokens.Add();
  AnswerToken token{.index = action.index, .id = action.id};
  if (action.in_text && !run->text_stopped) {
    auto result = run->text.Push(action.id);
    // A model's vocabulary may be padded beyond the tokenizer's: such a token has no text.
    if (!result.ok()) result = model::StopMatcher::Result{};
    token.text = std::move(result->text);
    run->text_stopped = result->stopped;
  }
  run->observer->OnToken(std::move(token));
  if (run->text_stopped) Apply(run, run->machine.OnStopText());
}

void Engine::Do(const RunPtr&, const Request::Refused& action) {
  pressure_ = true;
  Worker* worker = registry_.Find(action.worker);
  if (worker == nullptr) return;
  worker->refused_until = action.until;
  worker->refused_free_pages = worker->load.free_pages;
}

void Engine::Do(const RunPtr& run, const Request::FinishRequest& action) {
  AnswerEnd end;
  end.reason = action.end == Request::End::kCancelled                   ? FinishReason::kCancelled
               : action.end == Request::End::kStop || run->text_stopped ? FinishReason::kStop
                                                                        : FinishReason::kLength;
  end.text = run->text.Finish();
  end.prompt_tokens = run->machine.prompt_tokens();
  end.completion_tokens = run->machine.emitted();
  if (run->first_token.has_value()) {
    end.time_to_first_token = *run->first_token - run->submitted;
    if (end.completion_tokens > 1) {
      end.time_per_token = (*run->last_token - *run->first_token) / (end.completion_tokens - 1);
    }
  }
  end.handoff = run->handoff;
  end.attempts = run->machine.attempts();
  end.prefill_worker = run->prefill_worker;
  end.decode_worker = run->decode_worker;
  (end.reason == FinishReason::kStop     ? instruments_.stopped
   : end.reason == FinishReason::kLength ? instruments_.length
                                         : instruments_.cancelled)
      .Add();
  Forget(run);
  run->observer->OnEnd(end);
}

void Engine::Do(const RunPtr& run, const Request::FailRequest& action) {
  instruments_.failed.Add();
  Log(LogLevel::kWarning, "request_failed",
      {{"request", run->spec.request_id},
       {"attempts", run->machine.attempts()},
       {"why", action.status}});
  Forget(run);
  run->observer->OnError(action.status);
}

// Room of this request may be what the next one waits for.
void Engine::Forget(const RunPtr& run) {
  loop_.CancelTimer(run->queue_timer);
  loop_.CancelTimer(run->deadline_timer);
  queue_.erase(run->order);
  runs_.erase(run->spec.request_id);
  if (!queue_.empty()) DispatchAt(loop_.Now());
  UpdateGauges();
}

WorkerLink* Engine::FindLink(Incarnation worker) {
  const auto found = links_.find(worker);
  return found == links_.end() ? nullptr : found->second.get();
}

void Engine::GiveBack(std::optional<Share>& share) {
  if (!share.has_value()) return;
  const auto found = registry_.workers().find(share->worker);
  if (found != registry_.workers().end()) {
    Worker& worker = found->second;
    --worker.own_requests;
    worker.own_tokens -= share->tokens;
    // The refusal may no longer hold.
    if (worker.info.kind == WorkerKind::kDecode) worker.refused_until = -absl::InfiniteDuration();
  }
  share.reset();
}

}  // namespace kvferry::router
