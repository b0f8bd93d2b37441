#include "prefill_node/engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "prefill_node/chunk_encoder.h"

namespace kvferry::prefill {
namespace {

// Prompts whose uncompressed K and V are in memory: one computes, one may still be encoded.
constexpr int kMaxHoldingKv = 2;
// Aborted transfers that are remembered for a request that comes late.
constexpr std::size_t kMaxDead = 1024;

codec::CacheGeometry GeometryOf(const model::ModelConfig& config) {
  return {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim};
}

std::vector<double> SecondsBounds() {
  return {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
}

}  // namespace

// Fixed from Submit on, except what stands below `guarded`: that belongs to Engine::mutex_.
struct Engine::Job {
  JobRequest request;
  std::shared_ptr<JobObserver> observer;
  codec::BlockPlan plan;
  std::vector<codec::BlockSpec> specs;
  std::vector<ChunkPlan> chunks;
  std::uint64_t total_bytes = 0;
  MonoTime submitted;

  // guarded
  std::vector<std::vector<codec::KvView>> views;   // by layer: after each step, in turn
  std::shared_ptr<model::PrefillSession> session;  // the engine computes on, the encoder reads from
  std::optional<std::int32_t> first_token;
  std::size_t tokens_done = 0;
  MonoTime prefill_begin, prefill_end;
  bool finished = false;
  absl::Status status;
};

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       model::Model& model,
                                                       const codec::Quantizer& quantizer,
                                                       DataPlane& data_plane, const Clock& clock,
                                                       Metrics& metrics) {
  if (options.chunk_tokens < codec::kBlockTokens ||
      options.chunk_tokens % codec::kBlockTokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_tokens is ", options.chunk_tokens,
                                                   "; a positive multiple of 64 is needed"));
  }
  std::unique_ptr<Engine> engine(new Engine(options, model, quantizer, data_plane, clock, metrics));
  engine->engine_thread_ = std::thread([e = engine.get()] { e->RunEngine(); });
  engine->encoder_thread_ = std::thread([e = engine.get()] { e->RunEncoder(); });
  return engine;
}

Engine::Engine(const EngineOptions& options, model::Model& model, const codec::Quantizer& quantizer,
               DataPlane& data_plane, const Clock& clock, Metrics& metrics)
    : options_(options),
      model_(model),
      quantizer_(quantizer),
      data_plane_(data_plane),
      clock_(clock),
      geometry_(GeometryOf(model.config())),
      prefill_seconds_(metrics.GetHistogram("kvferry_prefill_compute_seconds",
                                            "Model time of a prompt", SecondsBounds())),
      exposed_seconds_(metrics.GetHistogram("kvferry_prefill_exposed_seconds",
                                            "From the end of prefill to adoption",
                                            SecondsBounds())),
      prompt_tokens_(
          metrics.GetCounter("kvferry_prefill_prompt_tokens_total", "Prompt tokens computed")),
      last_step_(clock.Now()) {}

Engine::~Engine() { Stop(); }

void Engine::Stop() {
  std::vector<JobPtr> left;
  {
    absl::MutexLock lock(&mutex_);
    draining_ = stopping_ = true;
    for (const auto& [id, job] : jobs_) left.push_back(job);
  }
  for (const JobPtr& job : left) {
    Finish(job, {.status = absl::UnavailableError("the prefill worker stops")});
  }
  if (engine_thread_.joinable()) engine_thread_.join();
  if (encoder_thread_.joinable()) encoder_thread_.join();
  // What the threads had not taken yet is finished too: nothing waits or holds K and V any more.
  absl::MutexLock lock(&mutex_);
  queue_.clear();
  encode_queue_.clear();
  holding_kv_ = 0;
}

absl::StatusOr<Engine::JobPtr> Engine::Plan(JobRequest request,
                                            std::shared_ptr<JobObserver> observer) const {
  auto job = std::make_shared<Job>();
  const int tokens = static_cast<int>(request.tokens.size());
  job->plan = codec::PlanBlocks(tokens, request.codec.window);
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(codec::BlockSpec spec, request.codec.ForLayer(layer, geometry_.head_dim));
    KVF_RETURN_IF_ERROR(quantizer_.Supports(spec));
    job->specs.push_back(spec);
  }
  KVF_ASSIGN_OR_RETURN(
      job->chunks,
      LayoutChunks({.plan = job->plan,
                    .geometry = geometry_,
                    .layers = job->specs,
                    .step_tokens = options_.chunk_tokens,
                    .slot_bytes = std::min(request.slot_bytes, data_plane_.slot_bytes()),
                    .target_bytes = data_plane_.SendsFromDevice(request.decode)
                                        ? kDeviceChunkTargetBytes
                                        : kChunkTargetBytes}));
  for (const ChunkPlan& chunk : job->chunks) job->total_bytes += chunk.bytes;
  job->views.resize(geometry_.layers);
  job->request = std::move(request);
  job->observer = std::move(observer);
  job->submitted = clock_.Now();
  return job;
}

absl::Status Engine::Submit(JobRequest request, std::shared_ptr<JobObserver> observer) {
  KVF_ASSIGN_OR_RETURN(JobPtr job, Plan(std::move(request), std::move(observer)));
  const TransferId id = job->request.transfer_id;
  absl::MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("the prefill worker is draining");
  if (dead_.contains(id)) {
    return absl::AbortedError(absl::StrCat("transfer ", id.ToHex(), " was aborted before"));
  }
  if (jobs_.contains(id)) {
    return absl::AlreadyExistsError(absl::StrCat("transfer ", id.ToHex(), " runs already"));
  }
  if (queue_.size() >= options_.max_queued_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("prefill queue is full: ", queue_.size(), " requests wait"));
  }
  jobs_[id] = job;
  queue_.push_back(std::move(job));
  return absl::OkStatus();
}

void Engine::Abort(const TransferId& id, Epoch epoch, const absl::Status& why) {
  JobPtr job;
  {
    absl::MutexLock lock(&mutex_);
    const auto entry = jobs_.find(id);
    if (entry != jobs_.end()) {
      if (entry->second->request.epoch == epoch) job = entry->second;
    } else if (dead_.insert(id).second) {
      dead_order_.push_back(id);
      if (dead_order_.size() > kMaxDead) {
        dead_.erase(dead_order_.front());
        dead_order_.pop_front();
      }
    }
  }
  if (job != nullptr) Finish(job, {.status = why});
}

void Engine::Finish(const JobPtr& job, const TransferResult& result) {
  absl::StatusOr<HandoffSummary> outcome = result.status.ok()
                                               ? absl::StatusOr<HandoffSummary>(HandoffSummary{})
                                               : absl::StatusOr<HandoffSummary>(result.status);
  {
    absl::MutexLock lock(&mutex_);
    if (job->finished) return;
    job->finished = true;
    job->status = result.status;
    jobs_.erase(job->request.transfer_id);
    std::erase(queue_, job);
    if (result.status.ok()) {
      outcome = Summarize(*job, result.shipment);
      outcome->adopted = true;
      outcome->header_bytes += transport::kControlHeaderBytes;  // COMMIT
      outcome->exposed_time = clock_.Now() - job->prefill_end;
    }
  }
  if (outcome.ok()) {
    prefill_seconds_.Observe(absl::ToDoubleSeconds(outcome->prefill_time));
    exposed_seconds_.Observe(absl::ToDoubleSeconds(outcome->exposed_time));
  } else {
    data_plane_.Abort(job->request.transfer_id, result.status);
    Log(LogLevel::kInfo, "prefill_failed",
        {{"request", job->request.request_id},
         {"transfer", job->request.transfer_id.ToHex()},
         {"why", result.status}});
  }
  job->observer->OnFinished(outcome);
}

HandoffSummary Engine::Summarize(const Job& job, const Shipment& shipment) const {
  const int tokens = job.plan.tokens;
  return {.prompt_tokens = static_cast<std::uint32_t>(tokens),
          .payload_bytes = shipment.payload_bytes,
          .header_bytes = std::uint64_t{shipment.chunks} * transport::kChunkHeaderBytes,
          .raw16_bytes = codec::Raw16HandoffBytes(tokens, geometry_),
          .chunks = shipment.chunks,
          .resent_chunks = shipment.resent_chunks,
          .transport = shipment.transport,
          .prefill_time = job.prefill_end - job.prefill_begin};
}

void Engine::RunEngine() {
  while (true) {
    JobPtr job;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || (!queue_.empty() && holding_kv_ < kMaxHoldingKv);
      };
      mutex_.Await(absl::Condition(&ready));
      if (stopping_) return;
      job = std::move(queue_.front());
      queue_.pop_front();
      computing_ = true;
      last_step_ = clock_.Now();
    }
    const absl::Status status = Explain(Compute(job));
    if (!status.ok()) {
      Finish(job, {.status = status});
      data_plane_.Abort(job->request.transfer_id, status);  // it may have been opened since
    }
    absl::MutexLock lock(&mutex_);
    computing_ = false;
  }
}

absl::Status Engine::Explain(const absl::Status& status) const {
  return options_.watch == nullptr ? status : options_.watch->Explain(status);
}

absl::Status Engine::Compute(const JobPtr& job) {
  const JobRequest& request = job->request;
  if (clock_.Now() - job->submitted > request.lease) {
    return absl::AbortedError(absl::StrCat("request ", request.request_id, " waited longer than ",
                                           absl::FormatDuration(request.lease),
                                           ", the lease of its grant"));
  }
  KVF_RETURN_IF_ERROR(data_plane_.OpenTransfer(
      {.id = request.transfer_id,
       .epoch = request.epoch,
       .decode = request.decode,
       .credits = request.credits,
       .total_bytes = job->total_bytes,
       .on_result = [this, job](const TransferResult& result) { Finish(job, result); }}));
  KVF_ASSIGN_OR_RETURN(
      std::shared_ptr<model::PrefillSession> session,
      model_.StartPrefill(static_cast<int>(request.tokens.size()), request.codec.raw_type));
  {
    absl::MutexLock lock(&mutex_);
    job->session = session;
    job->prefill_begin = clock_.Now();
    encode_queue_.push_back(job);
    ++holding_kv_;
  }
  const std::size_t step = options_.chunk_tokens;
  for (std::size_t begin = 0; begin < request.tokens.size(); begin += step) {
    KVF_RETURN_IF_ERROR(
        ComputeStep(*job, *session, begin, std::min(step, request.tokens.size() - begin)));
  }
  const std::int32_t token = model::SampleToken(session->logits(), request.sampling, request.tokens,
                                                static_cast<std::uint32_t>(request.tokens.size()));
  const MonoTime end = clock_.Now();
  const Shipment shipment = data_plane_.Shipped(request.transfer_id);
  HandoffSummary so_far;
  {
    absl::MutexLock lock(&mutex_);
    job->prefill_end = end;
    so_far = Summarize(*job, shipment);
  }
  job->observer->OnFirstToken(token, so_far);
  absl::MutexLock lock(&mutex_);
  job->first_token = token;  // lets the encoder commit
  return absl::OkStatus();
}

absl::Status Engine::ComputeStep(Job& job, model::PrefillSession& session, std::size_t begin,
                                 std::size_t count) {
  const auto on_layer = [&](int layer, const codec::KvView& view) {
    return OnLayer(job, layer, view);
  };
  const auto tokens = std::span<const std::int32_t>(job.request.tokens);
  const bool is_last = begin + count == tokens.size();
  const auto chunk = tokens.subspan(begin, count);
  KVF_RETURN_IF_ERROR(is_last ? session.Run(chunk, on_layer) : session.RunAhead(chunk, on_layer));
  prompt_tokens_.Add(count);
  {
    absl::MutexLock lock(&mutex_);
    job.tokens_done = begin + count;
  }
  job.observer->OnProgress(static_cast<std::uint32_t>(begin + count));
  return absl::OkStatus();
}

absl::Status Engine::OnLayer(Job& job, int layer, const codec::KvView& view) {
  const std::uint64_t ready = quantizer_.MarkReady();
  absl::MutexLock lock(&mutex_);
  ++steps_;
  last_step_ = clock_.Now();
  if (job.finished) return job.status;
  if (layer < 0 || layer >= geometry_.layers) {
    return absl::InternalError(absl::StrCat("the model reports layer ", layer));
  }
  job.views[layer].push_back(view);
  job.views[layer].back().ready = ready;
  return absl::OkStatus();
}

void Engine::RunEncoder() {
  while (true) {
    JobPtr job;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || !encode_queue_.empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (encode_queue_.empty()) return;
      job = std::move(encode_queue_.front());
      encode_queue_.pop_front();
    }
    const absl::Status status = Explain(Encode(job));
    if (!status.ok()) {
      Finish(job, {.status = status});
      data_plane_.Abort(job->request.transfer_id, status);
    }
    std::shared_ptr<model::PrefillSession> done;  // dies outside the mutex
    absl::MutexLock lock(&mutex_);
    done.swap(job->session);
    --holding_kv_;
  }
}

absl::Status Engine::Encode(const JobPtr& job) {
  for (const ChunkPlan& chunk : job->chunks) KVF_RETURN_IF_ERROR(EncodeOne(*job, chunk));
  KVF_ASSIGN_OR_RETURN(const std::int32_t first_token, AwaitFirstToken(*job));
  return data_plane_.Commit(job->request.transfer_id, first_token);
}

absl::Status Engine::EncodeOne(Job& job, const ChunkPlan& chunk) {
  std::vector<codec::KvView> views(geometry_.layers);
  {
    absl::MutexLock lock(&mutex_);
    // The first that suffices: the model may be steps ahead by now, and a later view is ready
    // later.
    const auto view_of = [&](int layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      const std::vector<codec::KvView>& steps = job.views[layer];
      return std::find_if(steps.begin(), steps.end(), [&](const codec::KvView& view) {
        return view.tokens >= chunk.ready_tokens;
      });
    };
    const int last = chunk.layer_end() - 1;
    const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return job.finished || view_of(last) != job.views[last].end();
    };
    mutex_.Await(absl::Condition(&ready));
    if (job.finished) return job.status;
    for (int layer = chunk.layer_begin; layer <= last; ++layer) views[layer] = *view_of(layer);
  }
  KVF_ASSIGN_OR_RETURN(SendSlot slot, data_plane_.AcquireSlot(job.request.transfer_id));
  const std::span<std::byte> payload = slot.bytes().first(chunk.bytes);
  KVF_ASSIGN_OR_RETURN(const std::uint32_t check,
                       EncodeChunk(chunk, job.specs, views, quantizer_, payload));
  return data_plane_.SendChunk(job.request.transfer_id,
                               {.layer_begin = static_cast<std::uint16_t>(chunk.layer_begin),
                                .layer_count = static_cast<std::uint16_t>(chunk.layer_count),
                                .kv_head_begin = 0,
                                .kv_head_count = static_cast<std::uint16_t>(geometry_.kv_heads),
                                .token_begin = static_cast<std::uint32_t>(chunk.token_begin),
                                .token_count = static_cast<std::uint32_t>(chunk.token_count),
                                .head_dim = static_cast<std::uint16_t>(geometry_.head_dim),
                                .kind = chunk.kind,
                                .check_kind = transport::CheckKind::kCrc32c,
                                .codec_hash = job.request.codec.Hash(),
                                .payload_check = check,
                                .payload_bytes = static_cast<std::uint32_t>(chunk.bytes)},
                               std::move(slot));
}

absl::StatusOr<std::int32_t> Engine::AwaitFirstToken(Job& job) {
  absl::MutexLock lock(&mutex_);
  const auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return job.finished || job.first_token.has_value();
  };
  mutex_.Await(absl::Condition(&ready));
  if (job.finished) return job.status;
  return *job.first_token;
}

EngineLoad Engine::load() const {
  absl::MutexLock lock(&mutex_);
  EngineLoad load{.queued_requests = static_cast<std::uint32_t>(queue_.size()),
                  .running_requests = static_cast<std::uint32_t>(jobs_.size() - queue_.size()),
                  .steps = steps_,
                  .stall = computing_ ? clock_.Now() - last_step_ : absl::ZeroDuration(),
                  .draining = draining_};
  for (const auto& [id, job] : jobs_) {
    load.queued_tokens += static_cast<std::uint32_t>(job->request.tokens.size() - job->tokens_done);
  }
  return load;
}

std::string Engine::RequestOf(const TransferId& id) const {
  absl::MutexLock lock(&mutex_);
  const auto entry = jobs_.find(id);
  return entry == jobs_.end() ? "" : entry->second->request.request_id;
}

void Engine::StartDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool Engine::WaitIdle(absl::Duration limit) const {
  absl::MutexLock lock(&mutex_);
  const auto idle = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return jobs_.empty() && !computing_ && holding_kv_ == 0;
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), limit);
}

}  // namespace kvferry::prefill
