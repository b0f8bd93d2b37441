#include "decode_node/engine.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"

namespace kvferry::decode {
namespace {

std::vector<double> StepBounds() { return {0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2}; }
std::vector<double> BatchBounds() { return {1, 2, 4, 8, 16, 32, 64, 128, 256}; }

}  // namespace

struct Engine::Sequence {
  TransferId id;
  std::unique_ptr<StoredSequence> cache;  // null: cancelled in the middle of a step, or finished
  std::vector<std::int32_t> tokens;       // all so far; the last one is not in the cache yet
  int prompt_tokens = 0;
  model::SamplingParams sampling;
  int max_new_tokens = 0;
  std::vector<std::int32_t> stop_tokens;
  std::shared_ptr<SequenceObserver> observer;

  int new_tokens() const { return static_cast<int>(tokens.size()) - prompt_tokens; }
};

Engine::Engine(StepRunner& runner, CacheStore& store, DeviceWatch& watch, const Clock& clock,
               Metrics& metrics)
    : runner_(runner),
      store_(store),
      watch_(watch),
      clock_(clock),
      tokens_total_(metrics.GetCounter("kvferry_decode_tokens_total", "Tokens generated")),
      step_seconds_(metrics.GetHistogram("kvferry_decode_step_seconds",
                                         "Time of one step of all sequences", StepBounds())),
      step_sequences_(metrics.GetHistogram("kvferry_decode_step_sequences",
                                           "Sequences that stepped together", BatchBounds())),
      last_step_(clock.Now()) {
  thread_ = std::thread([this] { Run(); });
}

Engine::~Engine() { Stop(); }

void Engine::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    for (auto& [id, why] : live_) {
      if (why.ok()) why = absl::UnavailableError("the decode worker stops");
    }
    ++cancels_;
  }
  if (thread_.joinable()) thread_.join();
}

void Engine::Submit(SequenceRequest request, std::shared_ptr<SequenceObserver> observer) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = request.id;
  sequence->cache = std::move(request.cache);
  sequence->prompt_tokens = static_cast<int>(request.tokens.size()) - 1;
  sequence->tokens = std::move(request.tokens);
  sequence->tokens.reserve(sequence->prompt_tokens + request.max_new_tokens);
  sequence->sampling = request.sampling;
  sequence->max_new_tokens = request.max_new_tokens;
  sequence->stop_tokens = std::move(request.stop_tokens);
  sequence->observer = std::move(observer);
  {
    absl::MutexLock lock(&mutex_);
    if (!stopping_) {
      if (live_.empty()) last_step_ = clock_.Now();  // the stall counts from here
      live_[sequence->id] = absl::OkStatus();
      arrivals_.push_back(std::move(sequence));
      return;
    }
  }
  sequence->cache.reset();
  sequence->observer->OnFinished(absl::UnavailableError("the decode worker stops"), false);
}

void Engine::Cancel(const TransferId& id, const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  const auto sequence = live_.find(id);
  if (sequence == live_.end() || !sequence->second.ok()) return;
  sequence->second = why.ok() ? absl::CancelledError("cancelled") : why;
  ++cancels_;
}

EngineLoad Engine::load() const {
  absl::MutexLock lock(&mutex_);
  return {.running = static_cast<std::uint32_t>(live_.size()),
          .steps = steps_,
          .stall = live_.empty() ? absl::ZeroDuration() : clock_.Now() - last_step_};
}

bool Engine::WaitIdle(absl::Duration limit) const {
  absl::MutexLock lock(&mutex_);
  const auto idle = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_.empty(); };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), limit);
}

void Engine::Run() {
  Batch batch;
  while (true) {
    TakeArrivals(batch);
    FinishCancelled(batch);
    if (batch.empty()) {
      absl::MutexLock lock(&mutex_);
      if (stopping_ && arrivals_.empty()) return;
      continue;
    }
    Step(batch);
  }
}

// Waits when there is nothing to do. What is over with its first token never joins.
void Engine::TakeArrivals(Batch& batch) {
  Batch fresh;
  {
    absl::MutexLock lock(&mutex_);
    const auto wake = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !arrivals_.empty() || stopping_;
    };
    if (batch.empty()) mutex_.Await(absl::Condition(&wake));
    fresh.swap(arrivals_);
  }
  for (auto& sequence : fresh) {
    bool stop_token = false;
    if (Ends(*sequence, stop_token)) {
      Finish(*sequence, absl::OkStatus(), stop_token);
    } else {
      batch.push_back(std::move(sequence));
    }
  }
}

void Engine::FinishCancelled(Batch& batch) {
  std::vector<std::pair<Sequence*, absl::Status>> cancelled;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& sequence : batch) {
      if (sequence->observer == nullptr) continue;  // finished in this step
      const absl::Status& why = live_.at(sequence->id);
      if (!why.ok()) cancelled.emplace_back(sequence.get(), why);
    }
  }
  for (const auto& [sequence, why] : cancelled) Finish(*sequence, why, false);
  std::erase_if(batch, [](const auto& sequence) { return sequence->observer == nullptr; });
}

void Engine::Step(Batch& batch) {
  const MonoTime start = clock_.Now();
  const absl::StatusOr<std::span<const float>> logits = RunModel(batch);
  if (logits.ok()) FlushWindows(batch);
  const std::size_t vocabulary = runner_.vocabulary();
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Sequence& sequence = *batch[i];
    // Finished already, or cancelled: FinishCancelled has its reason.
    if (sequence.cache == nullptr) continue;
    if (!logits.ok()) {
      Finish(sequence, logits.status(), false);
    } else {
      Advance(sequence, logits->subspan(i * vocabulary, vocabulary));
    }
  }
  FinishCancelled(batch);
  const absl::Duration took = clock_.Now() - start;
  step_seconds_.Observe(absl::ToDoubleSeconds(took));
  const std::int64_t mean = step_time_ns_.load();
  const std::int64_t now = absl::ToInt64Nanoseconds(took);
  step_time_ns_.store(mean == 0 ? now : mean + (now - mean) / 8);
  absl::MutexLock lock(&mutex_);
  ++steps_;
  last_step_ = clock_.Now();
}

absl::StatusOr<std::span<const float>> Engine::RunModel(const Batch& batch) {
  std::vector<std::int32_t> tokens, positions;
  std::vector<StoredSequence*> caches;
  for (const auto& sequence : batch) {
    tokens.push_back(sequence->tokens.back());
    positions.push_back(sequence->cache->tokens());
    caches.push_back(sequence->cache.get());
  }
  step_sequences_.Observe(static_cast<double>(batch.size()));
  std::uint64_t seen = 0;
  auto logits = runner_.Step(
      {.tokens = tokens, .positions = positions, .sequences = caches, .drop_cancelled = [&] {
         const std::uint64_t cancels = cancels_.load();
         if (cancels == seen) return;
         seen = cancels;
         DropCancelled(batch, caches);
       }});
  if (!logits.ok() && !absl::IsCancelled(logits.status())) {
    Log(LogLevel::kError, "step_failed", {{"sequences", batch.size()}, {"why", logits.status()}});
    return watch_.Explain(logits.status());
  }
  return logits;
}

void Engine::DropCancelled(const Batch& batch, std::span<StoredSequence*> caches) {
  absl::MutexLock lock(&mutex_);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    if (live_.at(batch[i]->id).ok()) continue;
    caches[i] = nullptr;
    batch[i]->cache.reset();
  }
}

void Engine::FlushWindows(const Batch& batch) {
  std::vector<Sequence*> full;
  std::vector<StoredSequence*> caches;
  for (const auto& sequence : batch) {
    if (sequence->cache == nullptr || !sequence->cache->MustFlush()) continue;
    full.push_back(sequence.get());
    caches.push_back(sequence->cache.get());
  }
  if (full.empty()) return;
  const std::vector<absl::Status> statuses = store_.Flush(caches);
  for (std::size_t i = 0; i < full.size(); ++i) {
    if (!statuses[i].ok()) Finish(*full[i], watch_.Explain(statuses[i]), false);
  }
}

void Engine::Advance(Sequence& sequence, std::span<const float> logits) {
  const auto position = static_cast<std::uint32_t>(sequence.tokens.size());
  const std::int32_t token =
      model::SampleToken(logits, sequence.sampling, sequence.tokens, position);
  if (token < 0 || token >= runner_.vocabulary()) {
    Finish(sequence,
           absl::InternalError(absl::StrCat("no token can be chosen at position ", position,
                                            ": the logits are not numbers")),
           false);
    return;
  }
  sequence.tokens.push_back(token);
  tokens_total_.Add();
  sequence.observer->OnToken(position, token);
  bool stop_token = false;
  if (Ends(sequence, stop_token)) Finish(sequence, absl::OkStatus(), stop_token);
}

bool Engine::Ends(const Sequence& sequence, bool& stop_token) const {
  stop_token = std::find(sequence.stop_tokens.begin(), sequence.stop_tokens.end(),
                         sequence.tokens.back()) != sequence.stop_tokens.end();
  return stop_token || sequence.new_tokens() >= sequence.max_new_tokens;
}

// The cache goes back first: who hears of the end may count on it.
void Engine::Finish(Sequence& sequence, const absl::Status& status, bool stop_token) {
  sequence.cache.reset();
  {
    absl::MutexLock lock(&mutex_);
    live_.erase(sequence.id);
  }
  const std::shared_ptr<SequenceObserver> observer = std::move(sequence.observer);
  observer->OnFinished(status, stop_token);
}

}  // namespace kvferry::decode
