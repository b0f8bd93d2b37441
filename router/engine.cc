#include "router/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/log.h"
#include "rpc/status.h"

namespace kvferry::router {
namespace {

constexpr absl::Duration kQueueRetry = absl::Seconds(1);  // the hint of a full queue
// Workers that look for a router ask again every 2 s (rpc/registry_client.cc): all that are there
// have joined a router by then.
constexpr absl::Duration kJoinLimit = absl::Seconds(5);
constexpr std::size_t kMaxUnreleased = 4096;  // per lost worker; the grants' leases do the rest

}  // namespace

Engine::Instruments::Instruments(Metrics& metrics)
    : stopped(metrics.GetCounter("kvferry_router_requests_total", "Requests by how they ended",
                                 {{"end", "stop"}})),
      length(metrics.GetCounter("kvferry_router_requests_total", "Requests by how they ended",
                                {{"end", "length"}})),
      cancelled(metrics.GetCounter("kvferry_router_requests_total", "Requests by how they ended",
                                   {{"end", "cancelled"}})),
      failed(metrics.GetCounter("kvferry_router_requests_total", "Requests by how they ended",
                                {{"end", "error"}})),
      attempts(metrics.GetCounter("kvferry_router_attempts_total",
                                  "Attempts begun: one per request and one per lost worker")),
      tokens(metrics.GetCounter("kvferry_router_tokens_total", "Generated tokens sent to clients")),
      prompt_tokens(
          metrics.GetCounter("kvferry_router_prompt_tokens_total", "Prompt tokens admitted")),
      workers_lost(metrics.GetCounter("kvferry_router_workers_lost_total",
                                      "Workers that went away with or without a word")),
      queued(metrics.GetGauge("kvferry_router_queued_requests", "Requests that wait for a worker")),
      running(metrics.GetGauge("kvferry_router_running_requests", "Requests on workers")),
      first_token_seconds(metrics.GetHistogram(
          "kvferry_router_first_token_seconds", "From admission to the first token",
          {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60})),
      token_seconds(metrics.GetHistogram(
          "kvferry_router_token_seconds", "Between two tokens of a request",
          {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5})) {}

Engine::Engine(const EngineOptions& options, const model::Tokenizer& tokenizer,
               const rpc::Credentials& credentials, Registry& registry, Loop& loop,
               Metrics& metrics)
    : options_(options),
      tokenizer_(tokenizer),
      credentials_(credentials),
      registry_(registry),
      loop_(loop),
      instruments_(metrics) {}

// -- Requests come and go.

void Engine::Submit(GenerateSpec spec, std::shared_ptr<AnswerObserver> observer) {
  loop_.Post([this, spec = std::move(spec), observer = std::move(observer)]() mutable {
    Admit(std::move(spec), std::move(observer));
  });
}

absl::Status Engine::Admissible(const GenerateSpec& spec) const {
  if (draining_ || stopped_)
    return absl::UnavailableError("this router is being drained; ask another one");
  if (runs_.contains(spec.request_id)) {
    return absl::AlreadyExistsError(absl::StrCat(
        "request_id: \"", spec.request_id, "\" is running; choose another or leave it empty"));
  }
  if (queue_.size() >= options_.max_queued_requests) {
    absl::Status full = absl::ResourceExhaustedError(
        absl::StrCat(queue_.size(), " requests wait already (max_queued_requests); ask again"));
    rpc::SetRetryHint(full, kQueueRetry);
    return full;
  }
  return absl::OkStatus();
}

void Engine::Admit(GenerateSpec spec, std::shared_ptr<AnswerObserver> observer) {
  absl::Status status = Admissible(spec);
  absl::StatusOr<TextStream> text = TextStream::Create(tokenizer_, spec.stop);
  if (status.ok()) status = text.status();
  if (!status.ok()) {
    observer->OnError(status);
    return;
  }
  Request machine({.prompt = spec.prompt,
                   .max_new_tokens = spec.max_new_tokens,
                   .stop_tokens = spec.stop_tokens,
                   .codec = spec.codec},
                  options_.request);
  auto run = std::make_shared<Run>(Run{.spec = std::move(spec),
                                       .order = next_order_++,
                                       .machine = std::move(machine),
                                       .text = *std::move(text),
                                       .observer = std::move(observer),
                                       .submitted = loop_.Now()});
  runs_.emplace(run->spec.request_id, run);
  instruments_.prompt_tokens.Add(run->spec.prompt.size());
  if (run->spec.deadline != absl::InfiniteDuration()) {
    run->deadline_timer = loop_.At(run->spec.deadline, [this, run] {
      Apply(run, run->machine.OnAbandon(
                     absl::DeadlineExceededError("the client's deadline has passed")));
    });
  }
  Apply(run, run->machine.Start(loop_.Now()));
  Dispatch();
}

void Engine::Cancel(const std::string& request_id) {
  loop_.Post([this, request_id] {
    const auto found = runs_.find(request_id);
    if (found == runs_.end()) return;
    const RunPtr run = found->second;
    Apply(run, run->machine.OnCancel());
    Dispatch();
  });
}

void Engine::Abandon(const std::string& request_id, const AnswerObserver* observer) {
  loop_.Post([this, request_id, observer] {
    const auto found = runs_.find(request_id);
    if (found == runs_.end() || found->second->observer.get() != observer) return;
    const RunPtr run = found->second;
    Apply(run, run->machine.OnCancel());
    Dispatch();
  });
}

std::vector<RunningRequest> Engine::Requests() const {
  std::vector<RunningRequest> requests;
  for (const auto& [id, run] : runs_) {
    RunningRequest& request = requests.emplace_back();
    request.request_id = id;
    request.state = std::string(run->machine.state_name());
    request.epoch = run->machine.attempts();
    if (run->grant.has_value()) request.transfer_id = run->grant->transfer_id();
    if (run->decode_share.has_value())
      request.workers = absl::StrCat(run->prefill_worker, " -> ", run->decode_worker);
    request.age = loop_.Now() - run->submitted;
  }
  return requests;
}

void Engine::Shutdown() {
  loop_.Run([this] {
    draining_ = true;
    stopped_ = true;
    const std::map<std::string, RunPtr> runs = runs_;
    for (const auto& [id, run] : runs)
      Apply(run, run->machine.OnAbandon(absl::UnavailableError("this router is stopping")));
  });
  calls_.WaitNone();
}

// -- Workers come and go.

std::vector<TransferName> Engine::WorkerJoined(const Worker& worker,
                                               const v1::Fingerprint& fingerprint) {
  fingerprint_ = fingerprint;
  names_[worker.info.incarnation] = worker.info.name;
  // An older run of the same name will not come back.
  std::erase_if(names_, [&](const auto& entry) {
    const bool older = entry.second == worker.info.name && entry.first != worker.info.incarnation;
    if (older) unreleased_.erase(entry.first);
    return older;
  });
  links_[worker.info.incarnation] =
      std::make_unique<WorkerLink>(worker.info, credentials_, loop_, calls_);
  std::vector<TransferName> releases;
  if (auto node = unreleased_.extract(worker.info.incarnation)) releases = std::move(node.mapped());
  return releases;
}

void Engine::WorkerReported() {
  if (!queue_.empty()) Dispatch();
}

void Engine::WorkerLost(const Worker& worker, const absl::Status& why, bool detached) {
  const Incarnation incarnation = worker.info.incarnation;
  instruments_.workers_lost.Add();
  const std::map<std::string, RunPtr> runs = runs_;
  for (const auto& [id, run] : runs) {
    if (!run->machine.uses(incarnation)) continue;
    const std::optional<v1::Grant> grant = run->grant;
    Apply(run, run->machine.OnWorkerLost(incarnation, why, loop_.Now()));
    if (run->machine.state() == Request::State::kRunning) continue;  // done with this worker
    Log(LogLevel::kWarning, "request_moves",
        {{"request", id}, {"worker", worker.info.name}, {"why", std::string(why.message())}});
    std::vector<TransferName>& releases = unreleased_[incarnation];
    if (!grant.has_value() || releases.size() >= kMaxUnreleased) continue;
    releases.push_back({.id = grant->transfer_id(), .epoch = grant->epoch()});
  }
  if (detached) links_.erase(incarnation);
  Dispatch();
}

// -- The queue.

void Engine::DispatchAt(MonoTime when) {
  if (when >= dispatch_time_) return;
  loop_.CancelTimer(dispatch_timer_);
  dispatch_time_ = when;
  dispatch_timer_ = loop_.At(when, [this] {
    dispatch_time_ = absl::InfiniteDuration();
    Dispatch();
  });
}

void Engine::Dispatch() {
  const MonoTime now = loop_.Now();
  if (queue_.empty() && probe_ == nullptr) pressure_ = false;
  std::set<std::string> blocked;  // codecs for which an older request could not go
  const std::map<std::uint64_t, RunPtr> waiting = queue_;
  for (const auto& [order, run] : waiting) {
    if (probe_ != nullptr) break;
    if (!queue_.contains(order) || blocked.contains(run->spec.codec)) continue;
    if (run->not_before > now) {
      DispatchAt(run->not_before);
      continue;
    }
    const RouteResult result = ChooseRoute(registry_, run->machine.route_request(), now);
    if (result.route.has_value()) {
      Assign(run, *result.route);
      continue;
    }
    run->no_route = result.why;
    const bool not_made = result.why == NoRoute::kNotMade;
    if (result.why == NoRoute::kNeverFits || result.why == NoRoute::kContext ||
        (not_made && now >= run->submitted + kJoinLimit)) {
      Apply(run, run->machine.OnHopeless(QueueError(*run)));
      continue;
    }
    if (not_made) DispatchAt(run->submitted + kJoinLimit);
    if (result.retry_at < absl::InfiniteDuration()) DispatchAt(result.retry_at);
    blocked.insert(run->spec.codec);
  }
  UpdateGauges();
}

void Engine::Assign(const RunPtr& run, const Route& route) {
  queue_.erase(run->order);
  loop_.CancelTimer(run->queue_timer);
  Worker& decode = *registry_.Find(route.decode);
  Worker& prefill = *registry_.Find(route.prefill);
  const auto tokens = static_cast<std::uint32_t>(run->machine.tokens().size());
  run->decode_worker = decode.info.name;
  run->prefill_worker = prefill.info.name;
  run->decode_share = Share{.worker = decode.attachment};
  run->prefill_share = Share{.worker = prefill.attachment, .tokens = tokens};
  for (Worker* worker : {&decode, &prefill}) {
    ++worker->own_requests;
    ++worker->assigned_total;
  }
  prefill.own_tokens += tokens;
  if (pressure_) probe_ = run;
  Apply(run, run->machine.OnRoute(route, loop_.Now()));
}

absl::Status Engine::QueueError(const Run& run) const {
  const std::string codec =
      run.spec.codec.empty() ? "" : absl::StrCat(" for codec \"", run.spec.codec, "\"");
  const std::string waited =
      absl::StrCat("waited ", absl::FormatDuration(options_.request.queue_limit));
  switch (run.no_route) {
    case NoRoute::kNoDecode:
      return absl::UnavailableError(absl::StrCat(
          waited, ": no decode worker", codec, " is attached; `kvferry status` lists the workers"));
    case NoRoute::kNoPrefill:
      return absl::UnavailableError(absl::StrCat(waited, ": no prefill worker", codec,
                                                 " is attached; `kvferry status` lists the "
                                                 "workers"));
    case NoRoute::kNotMade:
      return NotMadeError(run);
    case NoRoute::kContext:
      return absl::InvalidArgumentError(absl::StrCat(
          "max_tokens: prompt and answer are ", run.spec.prompt.size() + run.spec.max_new_tokens,
          " tokens, more than the context of any attached worker"));
    case NoRoute::kNeverFits:
      return run.machine.never_fits();
    case NoRoute::kFull:
      break;
  }
  absl::Status full =
      absl::ResourceExhaustedError(absl::StrCat(waited, ": all workers are full; ask again"));
  rpc::SetRetryHint(full, kQueueRetry);
  return full;
}

absl::Status Engine::NotMadeError(const Run& run) const {
  const std::set<std::string>& known = registry_.known_codecs();
  const std::string codecs =
      run.spec.codec.empty() ? absl::StrJoin(known, "\", \"") : run.spec.codec;
  return absl::FailedPreconditionError(absl::StrCat(
      "codec: no attached prefill worker makes \"", codecs, "\"",
      absl::StrContains(codecs, "codebooks=")
          ? "; name the file with these codebooks in the setting `codebooks` of a prefill worker"
          : "",
      "; `kvferry status` lists what each makes"));
}

void Engine::UpdateGauges() {
  instruments_.queued.Set(static_cast<double>(queued()));
  instruments_.running.Set(static_cast<double>(running()));
}

}  // namespace kvferry::router
