#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/device_watch.h"
#include "common/ids.h"
#include "common/metrics.h"
#include "kvcodec/backend.h"
#include "kvcodec/plan.h"
#include "model/model.h"
#include "model/sampler.h"
#include "prefill_node/chunk_layout.h"
#include "prefill_node/data_plane.h"

namespace kvferry::prefill {

// One prompt to compute and ship, checked (convert.h).
struct JobRequest {
  std::string request_id;
  TransferId transfer_id;
  Epoch epoch{};
  Incarnation decode{};
  std::uint32_t credits = 0;
  std::size_t slot_bytes = 0;                       // of the receiver
  absl::Duration lease = absl::InfiniteDuration();  // the grant ends if no byte arrives for so long
  codec::Codec codec;
  std::vector<std::int32_t> tokens;
  model::SamplingParams sampling;
};

// What one hand-off moved, and when. Before adoption: what it has moved so far.
struct HandoffSummary {
  bool adopted = false;
  std::uint32_t prompt_tokens = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t header_bytes = 0;
  std::uint64_t raw16_bytes = 0;
  std::uint32_t chunks = 0;
  std::uint32_t resent_chunks = 0;
  std::string transport;
  absl::Duration prefill_time;
  absl::Duration exposed_time;  // end of prefill to adopted; zero before
};

// Who asked. Thread: calls come from several threads, perhaps at once, and what comes after
// OnFinished is to be ignored; they must not block.
class JobObserver {
 public:
  virtual ~JobObserver() = default;
  virtual void OnProgress(std::uint32_t tokens_done) = 0;
  virtual void OnFirstToken(std::int32_t token, const HandoffSummary& so_far) = 0;
  // Once: decode has adopted everything, or why not.
  virtual void OnFinished(const absl::StatusOr<HandoffSummary>& result) = 0;
};

struct EngineLoad {
  std::uint32_t queued_requests = 0;
  std::uint32_t running_requests = 0;
  std::uint32_t queued_tokens = 0;  // prompt tokens still to compute
  std::uint64_t steps = 0;          // layers computed since the start
  absl::Duration stall;             // how long a running prompt has not got a layer further
  bool draining = false;
};

struct EngineOptions {
  int chunk_tokens = 512;  // per model call; a multiple of 64
  std::uint32_t max_queued_requests = 256;
  DeviceWatch* watch = nullptr;  // of the model's device; outlives the engine
};

// Runs prompts, first come, first served: one engine thread computes, one encoder thread turns
// layer n into chunks while the engine computes n + 1. The model never waits for the network, but
// at most two prompts hold uncompressed K and V at a time. Thread: any.
class Engine {
 public:
  // kInvalidArgument: chunk_tokens. All references outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        model::Model& model,
                                                        const codec::Quantizer& quantizer,
                                                        DataPlane& data_plane, const Clock& clock,
                                                        Metrics& metrics);
  ~Engine();

  // kResourceExhausted: the queue is full. kUnavailable: draining. kAborted: Abort came first.
  // kAlreadyExists: the transfer. kInvalidArgument: a slot that is too small. After OK the observer
  // hears OnFinished. shared_ptr: the caller's stream and the job end in either order.
  absl::Status Submit(JobRequest request, std::shared_ptr<JobObserver> observer);
  // Ends a job in whatever state; nothing more is posted after it returns. Idempotent, and
  // remembered for a request that has not come yet.
  void Abort(const TransferId& id, Epoch epoch, const absl::Status& why);

  EngineLoad load() const;
  // By transfer: for Admin.GetState.
  std::string RequestOf(const TransferId& id) const;
  void StartDraining();
  // Until no job is left. False: `limit` passed.
  bool WaitIdle(absl::Duration limit) const;
  // Fails what is left with kUnavailable and joins the threads. Idempotent.
  void Stop();

 private:
  struct Job;
  using JobPtr = std::shared_ptr<Job>;  // engine, encoder and data plane end with it in any order

  Engine(const EngineOptions& options, model::Model& model, const codec::Quantizer& quantizer,
         DataPlane& data_plane, const Clock& clock, Metrics& metrics);
  absl::StatusOr<JobPtr> Plan(JobRequest request, std::shared_ptr<JobObserver> observer) const;

  void RunEngine();
  void RunEncoder();
  // What an error of computing or encoding means.
  absl::Status Explain(const absl::Status& status) const;
  absl::Status Compute(const JobPtr& job);
  absl::Status ComputeStep(Job& job, model::PrefillSession& session, std::size_t begin,
                           std::size_t count);
  absl::Status OnLayer(Job& job, int layer, const codec::KvView& view);
  absl::Status Encode(const JobPtr& job);
  absl::Status EncodeOne(Job& job, const ChunkPlan& chunk);
  absl::StatusOr<std::int32_t> AwaitFirstToken(Job& job);
  // The first reason stands. OK: adopted.
  void Finish(const JobPtr& job, const TransferResult& result);
  // Before adoption.
  HandoffSummary Summarize(const Job& job, const Shipment& shipment) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const EngineOptions options_;
  model::Model& model_;
  const codec::Quantizer& quantizer_;
  DataPlane& data_plane_;
  const Clock& clock_;
  const codec::CacheGeometry geometry_;
  Histogram& prefill_seconds_;
  Histogram& exposed_seconds_;
  Counter& prompt_tokens_;

  mutable absl::Mutex mutex_;
  std::deque<JobPtr> queue_ ABSL_GUARDED_BY(mutex_);         // for the engine thread
  std::deque<JobPtr> encode_queue_ ABSL_GUARDED_BY(mutex_);  // for the encoder thread
  int holding_kv_ ABSL_GUARDED_BY(mutex_) = 0;               // jobs that the encoder needs
  absl::flat_hash_map<TransferId, JobPtr> jobs_ ABSL_GUARDED_BY(mutex_);  // not finished
  // Aborted before they came; the newest ones only.
  std::deque<TransferId> dead_order_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<TransferId> dead_ ABSL_GUARDED_BY(mutex_);
  bool computing_ ABSL_GUARDED_BY(mutex_) = false;
  std::uint64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  MonoTime last_step_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread engine_thread_;
  std::thread encoder_thread_;
};

}  // namespace kvferry::prefill
