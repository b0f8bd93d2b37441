#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/device_watch.h"
#include "common/ids.h"
#include "common/metrics.h"
#include "decode_node/cache_store.h"
#include "decode_node/step_runner.h"
#include "model/sampler.h"

namespace kvferry::decode {

// Hears what one sequence becomes. Thread: the engine's, or the caller's of Submit and Stop; must
// not block.
class SequenceObserver {
 public:
  virtual ~SequenceObserver() = default;
  // `position`: of this token in the sequence, prompt included.
  virtual void OnToken(std::uint32_t position, std::int32_t id) = 0;
  // Once, last; the cache is free by then. OK: a stop token, or as many tokens as were asked for.
  virtual void OnFinished(const absl::Status& status, bool stop_token) = 0;
};

// One adopted sequence to continue.
struct SequenceRequest {
  TransferId id;
  std::unique_ptr<StoredSequence> cache;  // published
  std::vector<std::int32_t> tokens;       // the prompt, then the first token, sampled by prefill
  model::SamplingParams sampling;
  int max_new_tokens = 0;  // the first token counted
  std::vector<std::int32_t> stop_tokens;
};

struct EngineLoad {
  std::uint32_t running = 0;  // waiting for their first step included
  std::uint64_t steps = 0;
  absl::Duration stall;  // how long there has been work without a step
};

// Generates: one engine thread steps all sequences together; they join and leave between steps.
// Thread: any.
class Engine {
 public:
  // All references outlive the engine. `store` is the one that the sequences come from, `runner`
  // steps over it, `watch` says what their errors mean.
  Engine(StepRunner& runner, CacheStore& store, DeviceWatch& watch, const Clock& clock,
         Metrics& metrics);
  ~Engine();

  // Takes over a sequence. The first token is not reported: it is known. kUnavailable: stopped.
  void Submit(SequenceRequest request, std::shared_ptr<SequenceObserver> observer);
  // Ends a sequence with `why`; its cache is free before the next layer is computed, on a GPU
  // before the next step. No effect on one that is over.
  void Cancel(const TransferId& id, const absl::Status& why);

  EngineLoad load() const;
  // Mean of the last steps; what one token of every running sequence takes.
  absl::Duration step_time() const { return absl::Nanoseconds(step_time_ns_.load()); }
  // Until nothing runs. False: `limit` passed.
  bool WaitIdle(absl::Duration limit) const;
  // Ends what is left with kUnavailable and joins the thread. Idempotent.
  void Stop();

 private:
  struct Sequence;
  using Batch = std::vector<std::unique_ptr<Sequence>>;

  void Run();
  void TakeArrivals(Batch& batch);
  void Step(Batch& batch);
  // The logits: [sequences, vocabulary].
  absl::StatusOr<std::span<const float>> RunModel(const Batch& batch);
  void DropCancelled(const Batch& batch, std::span<StoredSequence*> caches);
  // Flushes full windows; finishes the sequences that cannot.
  void FlushWindows(const Batch& batch);
  // Samples the next token; finishes the sequence if it was the last one.
  void Advance(Sequence& sequence, std::span<const float> logits);
  void Finish(Sequence& sequence, const absl::Status& status, bool stop_token);
  void FinishCancelled(Batch& batch);
  bool Ends(const Sequence& sequence, bool& stop_token) const;

  StepRunner& runner_;
  CacheStore& store_;
  DeviceWatch& watch_;
  const Clock& clock_;
  Counter& tokens_total_;
  Histogram& step_seconds_;
  Histogram& step_sequences_;
  std::atomic<std::int64_t> step_time_ns_{0};

  mutable absl::Mutex mutex_;
  Batch arrivals_ ABSL_GUARDED_BY(mutex_);
  // Why each live sequence is to end; OK: it is not. An engine step looks here between layers.
  absl::flat_hash_map<TransferId, absl::Status> live_ ABSL_GUARDED_BY(mutex_);
  std::atomic<std::uint64_t> cancels_{0};  // grows with each Cancel, so that layers look cheaply
  std::uint64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  MonoTime last_step_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;
};

}  // namespace kvferry::decode
