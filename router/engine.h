#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/metrics.h"
#include "model/tokenizer.h"
#include "router/loop.h"
#include "router/registry.h"
#include "router/request.h"
#include "router/text_stream.h"
#include "router/types.h"
#include "router/worker_link.h"
#include "rpc/credentials.h"

namespace kvferry::router {

struct EngineOptions {
  std::uint32_t max_queued_requests = 1024;
  Request::Limits request;
};

// What an operator sees of a running request.
struct RunningRequest {
  std::string request_id;
  std::string state;
  std::string transfer_id;  // raw; empty while there is none
  std::uint32_t epoch = 0;
  std::string workers;  // "prefill-0 -> decode-0"
  absl::Duration age;
};

// A transfer that a worker may still hold.
struct TransferName {
  std::string id;  // raw
  std::uint32_t epoch = 0;
};

// The serving core: runs every request's state machine against the attached workers, first come
// first served, and turns token ids into text. Thread: its state belongs to the loop; Submit,
// Cancel and Abandon come from any thread, everything else runs on the loop.
class Engine {
 public:
  // All outlive the engine. Shutdown before the destructor.
  Engine(const EngineOptions& options, const model::Tokenizer& tokenizer,
         const rpc::Credentials& credentials, Registry& registry, Loop& loop, Metrics& metrics);

  // The observer hears everything that comes of it, a refusal too: kAlreadyExists (the id is in
  // use), kResourceExhausted (the queue is full, with a hint), kUnavailable (draining).
  void Submit(GenerateSpec spec, std::shared_ptr<AnswerObserver> observer);
  // Ends a request with FinishReason::kCancelled. Nothing when there is none of that id.
  void Cancel(const std::string& request_id);
  // The client of `observer` is gone: its request ends as cancelled, whatever its state.
  void Abandon(const std::string& request_id, const AnswerObserver* observer);

  // -- News of workers. Loop.
  // Returns what this run of the worker still holds for requests that have gone elsewhere.
  std::vector<TransferName> WorkerJoined(const Worker& worker, const v1::Fingerprint& fingerprint);
  void WorkerReported();
  // It left, is silent, was replaced or hangs: what it runs goes elsewhere. A hanging one stays
  // connected.
  void WorkerLost(const Worker& worker, const absl::Status& why, bool detached);

  // -- State. Loop.
  std::size_t queued() const { return queue_.size(); }
  std::size_t running() const { return runs_.size() - queue_.size(); }
  std::vector<RunningRequest> Requests() const;
  void StartDraining() { draining_ = true; }
  bool draining() const { return draining_; }

  // Fails what still runs and waits for gRPC to let go of every call. From outside of the loop.
  void Shutdown();

 private:
  // Room that a request takes of a worker in the router's own count.
  struct Share {
    Attachment worker{};
    std::uint32_t tokens = 0;
  };
  // One request and what belongs to it. Shared by `runs_` and the handlers of its calls.
  struct Run {
    GenerateSpec spec;
    std::uint64_t order = 0;  // of arrival
    Request machine;
    TextStream text;
    std::shared_ptr<AnswerObserver> observer;  // shared with the front's call
    MonoTime submitted;
    std::optional<MonoTime> first_token, last_token;
    MonoTime not_before;
    NoRoute no_route = NoRoute::kNoDecode;
    Loop::TimerId queue_timer{}, deadline_timer{};
    std::shared_ptr<WorkerCall> reserve_call, decode_call, prefill_call;  // shared with gRPC
    std::optional<v1::Grant> grant;
    bool decode_heard = false;  // Decode.Run has certainly reached the worker
    std::optional<Share> decode_share, prefill_share;
    std::string decode_worker, prefill_worker;
    Handoff handoff;
    bool started = false;
    bool text_stopped = false;
  };
  using RunPtr = std::shared_ptr<Run>;
  struct Instruments {
    explicit Instruments(Metrics& metrics);
    Counter &stopped, &length, &cancelled, &failed;
    Counter &attempts, &tokens, &prompt_tokens, &workers_lost;
    Gauge &queued, &running;
    Histogram &first_token_seconds, &token_seconds;
  };

  void Admit(GenerateSpec spec, std::shared_ptr<AnswerObserver> observer);
  absl::Status Admissible(const GenerateSpec& spec) const;
  // Gives routes to waiting requests, oldest first.
  void Dispatch();
  void DispatchAt(MonoTime when);
  void Assign(const RunPtr& run, const Route& route);
  absl::Status QueueError(const Run& run) const;
  absl::Status NotMadeError(const Run& run) const;

  void Apply(const RunPtr& run, const Request::Actions& actions);
  void Do(const RunPtr& run, const Request::Enqueue& action);
  void Do(const RunPtr& run, const Request::Reserve& action);
  void Do(const RunPtr& run, const Request::OpenCalls& action);
  void Do(const RunPtr& run, const Request::CloseCalls& action);
  void Do(const RunPtr& run, const Request::Emit& action);
  void Do(const RunPtr& run, const Request::Refused& action);
  void Do(const RunPtr& run, const Request::FinishRequest& action);
  void Do(const RunPtr& run, const Request::FailRequest& action);

  void OnReserveAnswer(const RunPtr& run, RouteSerial serial, Incarnation decode,
                       absl::StatusOr<v1::Grant> grant);
  void OnDecodeEvent(const RunPtr& run, RouteSerial serial, const v1::TokenEvent& event);
  void OnPrefillEvent(const RunPtr& run, RouteSerial serial, const v1::PrefillEvent& event);

  WorkerLink* FindLink(Incarnation worker);
  void GiveBack(std::optional<Share>& share);
  void Forget(const RunPtr& run);
  void UpdateGauges();

  const EngineOptions options_;
  const model::Tokenizer& tokenizer_;
  const rpc::Credentials& credentials_;
  Registry& registry_;
  Loop& loop_;
  Instruments instruments_;
  CallCount calls_;
  v1::Fingerprint fingerprint_;  // of the attached workers
  std::map<Incarnation, std::unique_ptr<WorkerLink>> links_;
  std::map<Incarnation, std::string> names_;  // of the last run of each name
  // By the lost worker: told to it if that run comes back.
  std::map<Incarnation, std::vector<TransferName>> unreleased_;
  std::map<std::string, RunPtr> runs_;     // by request id
  std::map<std::uint64_t, RunPtr> queue_;  // waiting, by arrival
  // From a refusal until nobody waits: requests ask one after the other, so that none overtakes.
  bool pressure_ = false;
  RunPtr probe_;  // the one that is asking
  std::uint64_t next_order_ = 1;
  Loop::TimerId dispatch_timer_{};
  MonoTime dispatch_time_ = absl::InfiniteDuration();
  bool draining_ = false;
  bool stopped_ = false;
};

}  // namespace kvferry::router
