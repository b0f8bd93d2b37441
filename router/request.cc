#include "router/request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rpc/status.h"

namespace kvferry::router {
namespace {

// Whether another worker, or the same one later, may do what this one did not. The rest says that
// the request itself or the installation is wrong.
bool MayBeTriedAgain(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kCancelled:         // not by us: the worker is going down
    case absl::StatusCode::kDeadlineExceeded:  // nor is it the client's deadline
    case absl::StatusCode::kUnknown:           // how gRPC reports some broken streams
    case absl::StatusCode::kNotFound:          // the worker has forgotten the transfer: restarted
      return true;
    default:
      return false;
  }
}

// Doubles with every attempt, so that a fault that the registry has not noticed yet does not use up
// all of them.
absl::Duration RetryPause(std::uint32_t attempts) {
  const absl::Duration pause = absl::Milliseconds(20) * (1 << std::min(attempts, 6u));
  return std::min(pause, absl::Seconds(1));
}

}  // namespace

Request::Request(Spec spec, const Limits& limits) : spec_(std::move(spec)), limits_(limits) {
  std::sort(spec_.stop_tokens.begin(), spec_.stop_tokens.end());
}

std::string_view Request::state_name() const {
  switch (state_) {
    case State::kNew:
    case State::kWaiting:
      return "WAITING";
    case State::kReserving:
      return "RESERVING";
    case State::kRunning:
      return adopted_ ? "DECODING" : "PREFILLING";
    case State::kFinished:
      return "FINISHED";
  }
  return "UNKNOWN";
}

RouteRequest Request::route_request() const {
  return {.codec = spec_.codec,
          .sequence_tokens = prompt_tokens() + spec_.max_new_tokens,
          .avoid = avoid_,
          .never = never_};
}

bool Request::uses(Incarnation worker) const {
  if (state_ != State::kReserving && state_ != State::kRunning) return false;
  return route_.decode == worker || (route_.prefill == worker && !prefill_done_);
}

Request::Actions Request::Start(MonoTime now) {
  Actions actions;
  tokens_ = spec_.prompt;
  tokens_.reserve(spec_.prompt.size() + spec_.max_new_tokens);
  Wait(now, now, actions);
  return actions;
}

Request::Actions Request::OnRoute(const Route& route, MonoTime) {
  Actions actions;
  if (state_ != State::kWaiting) return actions;
  state_ = State::kReserving;
  route_ = route;
  serial_ = RouteSerial{static_cast<std::uint32_t>(serial_) + 1};
  adopted_ = false;
  prefill_done_ = false;
  attempt_begin_ = tokens_.size();
  actions.emplace_back(Reserve{.serial = serial_,
                               .epoch = attempts_ + 1,
                               .prompt_tokens = static_cast<std::uint32_t>(tokens_.size()),
                               .max_new_tokens = remaining()});
  return actions;
}

Request::Actions Request::OnQueueTimeout(const absl::Status& why) {
  Actions actions;
  if (state_ == State::kWaiting) Fail(why, actions);
  return actions;
}

Request::Actions Request::OnReserved(RouteSerial serial, MonoTime) {
  Actions actions;
  if (!Current(serial, State::kReserving)) return actions;
  state_ = State::kRunning;
  ++attempts_;
  actions.emplace_back(
      OpenCalls{.serial = serial, .epoch = attempts_, .max_new_tokens = remaining()});
  return actions;
}

Request::Actions Request::OnReserveFailed(RouteSerial serial, const absl::Status& status,
                                          MonoTime now) {
  Actions actions;
  if (!Current(serial, State::kReserving)) return actions;
  // What one pool can never hold may fit into another's.
  if (absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status)) {
    Refuse(route_.decode, status, now, actions);
    return actions;
  }
  ++attempts_;
  EndAttempt(status, route_.decode, now, actions);
  return actions;
}

Request::Actions Request::OnFirstToken(RouteSerial serial, std::int32_t id, MonoTime now) {
  Actions actions;
  if (!Current(serial, State::kRunning)) return actions;
  TakeToken(static_cast<std::uint32_t>(attempt_begin_), id, now, actions);
  return actions;
}

Request::Actions Request::OnAdopted(RouteSerial serial, std::int32_t first_token, MonoTime now) {
  Actions actions;
  if (!Current(serial, State::kRunning)) return actions;
  adopted_ = true;
  TakeToken(static_cast<std::uint32_t>(attempt_begin_), first_token, now, actions);
  return actions;
}

Request::Actions Request::OnToken(RouteSerial serial, std::uint32_t position, std::int32_t id,
                                  MonoTime now) {
  Actions actions;
  if (Current(serial, State::kRunning)) TakeToken(position, id, now, actions);
  return actions;
}

Request::Actions Request::OnDecodeFinished(RouteSerial serial, bool stop_token, MonoTime now) {
  Actions actions;
  if (!Current(serial, State::kRunning)) return actions;
  // A told stop token, or the last token, has finished the request before this comes.
  if (stop_token) {
    Finish(End::kStop, actions);
    return actions;
  }
  EndAttempt(absl::DataLossError(absl::StrCat("the decode worker ended after ", emitted(), " of ",
                                              spec_.max_new_tokens, " tokens")),
             route_.decode, now, actions);
  return actions;
}

Request::Actions Request::OnDecodeEnded(RouteSerial serial, const absl::Status& status,
                                        MonoTime now) {
  Actions actions;
  if (!Current(serial, State::kRunning)) return actions;
  if (absl::IsResourceExhausted(status)) {
    Refuse(route_.decode, status, now, actions);
    return actions;
  }
  EndAttempt(status.ok() ? absl::AbortedError("the decode worker ended the stream early") : status,
             route_.decode, now, actions);
  return actions;
}

Request::Actions Request::OnCommitted(RouteSerial serial) {
  if (Current(serial, State::kRunning)) prefill_done_ = true;
  return {};
}

Request::Actions Request::OnPrefillEnded(RouteSerial serial, const absl::Status& status,
                                         MonoTime now) {
  Actions actions;
  if (!Current(serial, State::kRunning)) return actions;
  // What decode has adopted needs prefill no more.
  if (prefill_done_ || adopted_) {
    prefill_done_ = true;
    return actions;
  }
  if (absl::IsResourceExhausted(status)) {
    Refuse(route_.prefill, status, now, actions);
    return actions;
  }
  EndAttempt(
      status.ok() ? absl::AbortedError("the prefill worker ended before it had committed") : status,
      route_.prefill, now, actions);
  return actions;
}

Request::Actions Request::OnWorkerLost(Incarnation worker, const absl::Status& why, MonoTime now) {
  Actions actions;
  if (!uses(worker)) return actions;
  if (worker == route_.prefill && adopted_ && worker != route_.decode) {
    prefill_done_ = true;
    return actions;
  }
  if (state_ == State::kReserving) ++attempts_;
  // Known to be gone: nothing to wait for.
  EndAttempt(absl::UnavailableError(why.message()), worker, now, actions);
  for (Action& action : actions) {
    if (auto* enqueue = std::get_if<Enqueue>(&action)) enqueue->not_before = now;
  }
  return actions;
}

Request::Actions Request::OnStopText() {
  Actions actions;
  if (state_ == State::kRunning) Finish(End::kStop, actions);
  return actions;
}

Request::Actions Request::OnCancel() {
  Actions actions;
  if (state_ != State::kFinished) Finish(End::kCancelled, actions);
  return actions;
}

Request::Actions Request::OnAbandon(const absl::Status& why) {
  Actions actions;
  if (state_ != State::kFinished) Fail(why, actions);
  return actions;
}

void Request::TakeToken(std::uint32_t position, std::int32_t id, MonoTime now, Actions& actions) {
  if (position < tokens_.size()) {
    // Prefill and decode both tell the first token; anything else twice is harmless if it is the
    // same.
    if (position >= attempt_begin_ && tokens_[position] == id) return;
    EndAttempt(absl::DataLossError(absl::StrCat("token ", id, " at position ", position,
                                                " contradicts what was sent before")),
               route_.decode, now, actions);
    return;
  }
  if (position > tokens_.size()) {
    EndAttempt(
        absl::DataLossError(absl::StrCat("a token of position ", position, " came where position ",
                                         tokens_.size(), " was due")),
        route_.decode, now, actions);
    return;
  }
  waiting_since_.reset();
  tokens_.push_back(id);
  const bool stop = std::binary_search(spec_.stop_tokens.begin(), spec_.stop_tokens.end(), id);
  actions.emplace_back(Emit{.index = emitted() - 1, .id = id, .in_text = !stop});
  if (stop) {
    Finish(End::kStop, actions);
  } else if (remaining() == 0) {
    Finish(End::kLength, actions);
  }
}

void Request::EndAttempt(const absl::Status& status, std::optional<Incarnation> culprit,
                         MonoTime now, Actions& actions) {
  if (!MayBeTriedAgain(status)) {
    Fail(status, actions);
    return;
  }
  if (attempts_ >= limits_.max_attempts) {
    Fail(
        absl::UnavailableError(absl::StrCat(
            "gave up after ", attempts_, " attempts; the last one ended with: ", status.message())),
        actions);
    return;
  }
  Close(actions);
  avoid_.clear();
  if (culprit.has_value()) avoid_.insert(*culprit);
  Wait(now, now + RetryPause(attempts_), actions);
}

void Request::Refuse(Incarnation worker, const absl::Status& status, MonoTime now,
                     Actions& actions) {
  Close(actions);
  // Without a hint there is nothing to wait for: it can never fit there.
  if (const std::optional<absl::Duration> hint = rpc::RetryHint(status)) {
    actions.emplace_back(Refused{.worker = worker, .until = now + *hint});
  } else {
    never_.insert(worker);
    never_fits_ = status;
  }
  if (state_ == State::kRunning) --attempts_;  // it has not begun
  Wait(now, now, actions);
}

void Request::Wait(MonoTime now, MonoTime not_before, Actions& actions) {
  state_ = State::kWaiting;
  if (!waiting_since_.has_value()) waiting_since_ = now;
  actions.emplace_back(
      Enqueue{.not_before = not_before, .deadline = *waiting_since_ + limits_.queue_limit});
}

void Request::Close(Actions& actions) {
  if (state_ == State::kReserving || state_ == State::kRunning) actions.emplace_back(CloseCalls{});
}

void Request::Finish(End end, Actions& actions) {
  Close(actions);
  state_ = State::kFinished;
  actions.emplace_back(FinishRequest{.end = end});
}

void Request::Fail(absl::Status status, Actions& actions) {
  Close(actions);
  state_ = State::kFinished;
  actions.emplace_back(FailRequest{.status = std::move(status)});
}

}  // namespace kvferry::router
