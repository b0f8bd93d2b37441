#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/ids.h"
#include "router/routing.h"

namespace kvferry::router {

// Numbers the routes that one request has been given: news of an older one is dropped.
enum class RouteSerial : std::uint32_t {};

// One request from admission to its last token, over as many attempts as it takes. Pure: events in,
// actions out, in order; the caller carries out all of them. After FinishRequest or FailRequest
// nothing more comes.
//
//   waiting -> reserving -> running -> finished
//      ^___________|___________|          a lost worker, a refusal: prompt and emitted tokens go
//                                         into the next attempt, with the same seed
//
// A token is known by its position in the sequence, so that what two attempts both produce is
// emitted once. Thread: one at a time.
class Request {
 public:
  struct Spec {
    std::vector<std::int32_t> prompt;
    std::uint32_t max_new_tokens = 0;
    std::vector<std::int32_t> stop_tokens;
    std::string codec;
  };
  struct Limits {
    std::uint32_t max_attempts = 8;
    absl::Duration queue_limit = absl::Seconds(60);
  };

  // -- Actions.
  struct Enqueue {  // call OnRoute when there is one; after `deadline` OnQueueTimeout
    MonoTime not_before;
    MonoTime deadline;
  };
  struct Reserve {  // on route().decode; answer with OnReserved or OnReserveFailed
    RouteSerial serial;
    std::uint32_t epoch;
    std::uint32_t prompt_tokens;
    std::uint32_t max_new_tokens;
  };
  struct OpenCalls {  // Decode.Run and Prefill.Run, with tokens() and the rest of max_new_tokens
    RouteSerial serial;
    std::uint32_t epoch;
    std::uint32_t max_new_tokens;
  };
  struct CloseCalls {};  // breaks what is open of the two; a grant without calls is released
  struct Emit {
    std::uint32_t index;
    std::int32_t id;
    bool in_text;  // false: the stop token that ends the answer
  };
  struct Refused {  // by a worker for want of room
    Incarnation worker;
    MonoTime until;
  };
  enum class End { kStop, kLength, kCancelled };
  struct FinishRequest {
    End end;
  };
  struct FailRequest {
    absl::Status status;
  };
  using Action = std::variant<Enqueue, Reserve, OpenCalls, CloseCalls, Emit, Refused, FinishRequest,
                              FailRequest>;
  using Actions = std::vector<Action>;

  Request(Spec spec, const Limits& limits);

  // -- Events. Those of a call name the route that it belongs to.
  Actions Start(MonoTime now);
  Actions OnRoute(const Route& route, MonoTime now);
  Actions OnQueueTimeout(const absl::Status& why);
  // No worker will ever do: fails the request.
  Actions OnHopeless(const absl::Status& why) { return OnQueueTimeout(why); }
  Actions OnReserved(RouteSerial serial, MonoTime now);
  Actions OnReserveFailed(RouteSerial serial, const absl::Status& status, MonoTime now);
  Actions OnFirstToken(RouteSerial serial, std::int32_t id, MonoTime now);
  Actions OnAdopted(RouteSerial serial, std::int32_t first_token, MonoTime now);
  Actions OnToken(RouteSerial serial, std::uint32_t position, std::int32_t id, MonoTime now);
  Actions OnDecodeFinished(RouteSerial serial, bool stop_token, MonoTime now);
  // The stream's end; OK after OnDecodeFinished.
  Actions OnDecodeEnded(RouteSerial serial, const absl::Status& status, MonoTime now);
  Actions OnCommitted(RouteSerial serial);
  Actions OnPrefillEnded(RouteSerial serial, const absl::Status& status, MonoTime now);
  Actions OnWorkerLost(Incarnation worker, const absl::Status& why, MonoTime now);
  Actions OnStopText();  // the text of the last Emit completed a stop string
  Actions OnCancel();
  Actions OnAbandon(const absl::Status& why);  // deadline, shutdown: fails at any state

  // -- State.
  enum class State { kNew, kWaiting, kReserving, kRunning, kFinished };
  State state() const { return state_; }
  std::string_view state_name() const;  // as in docs/protocol.md
  // What the next route must have.
  RouteRequest route_request() const;
  const Route& route() const { return route_; }  // while reserving or running
  RouteSerial serial() const { return serial_; }
  std::uint32_t attempts() const { return attempts_; }
  // Prompt and what was emitted.
  const std::vector<std::int32_t>& tokens() const { return tokens_; }
  std::uint32_t prompt_tokens() const { return static_cast<std::uint32_t>(spec_.prompt.size()); }
  std::uint32_t emitted() const {
    return static_cast<std::uint32_t>(tokens_.size() - spec_.prompt.size());
  }
  bool uses(Incarnation worker) const;
  bool prefill_done() const { return prefill_done_; }
  // Why a worker said that it can never fit; OK: none has.
  const absl::Status& never_fits() const { return never_fits_; }

 private:
  bool Current(RouteSerial serial, State state) const {
    return state_ == state && serial_ == serial;
  }
  std::uint32_t remaining() const { return spec_.max_new_tokens - emitted(); }
  void TakeToken(std::uint32_t position, std::int32_t id, MonoTime now, Actions& actions);
  // Ends the attempt; another one follows if the status and the limits allow.
  void EndAttempt(const absl::Status& status, std::optional<Incarnation> culprit, MonoTime now,
                  Actions& actions);
  void Refuse(Incarnation worker, const absl::Status& status, MonoTime now, Actions& actions);
  void Wait(MonoTime now, MonoTime not_before, Actions& actions);
  void Finish(End end, Actions& actions);
  void Fail(absl::Status status, Actions& actions);
  void Close(Actions& actions);

  Spec spec_;
  Limits limits_;
  State state_ = State::kNew;
  std::vector<std::int32_t> tokens_;
  Route route_;
  RouteSerial serial_{};
  std::uint32_t attempts_ = 0;     // begun
  std::size_t attempt_begin_ = 0;  // tokens_ when the attempt began
  bool adopted_ = false;
  bool prefill_done_ = false;
  std::optional<MonoTime> waiting_since_;  // without a new token
  std::set<Incarnation> avoid_;
  std::set<Incarnation> never_;
  absl::Status never_fits_;
};

}  // namespace kvferry::router
