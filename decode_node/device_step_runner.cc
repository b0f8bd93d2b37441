#include "decode_node/device_step_runner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/cuda/device.h"

namespace kvferry::decode {

absl::StatusOr<std::unique_ptr<DeviceStepRunner>> DeviceStepRunner::Create(
    const DeviceStepOptions& options, model::Model& model, const CacheStore& store,
    kernels::Stream& stream, const MakeAttention& make_attention) {
  KVF_RETURN_IF_ERROR(kernels::UseDevice(options.gpu));
  std::unique_ptr<DeviceStepRunner> runner(new DeviceStepRunner(options, model, stream));
  KVF_ASSIGN_OR_RETURN(
      runner->attention_,
      DeviceAttention::Create(options.gpu, options.max_sequences, model.config().q_heads, store,
                              stream, make_attention));
  const std::size_t logits = options.max_sequences * static_cast<std::size_t>(runner->vocabulary());
  KVF_ASSIGN_OR_RETURN(runner->logits_, kernels::PinnedBuffer::Allocate(sizeof(float) * logits));
  KVF_ASSIGN_OR_RETURN(runner->model_begin_, kernels::Event::Create(true));
  KVF_ASSIGN_OR_RETURN(runner->model_end_, kernels::Event::Create(true));
  KVF_ASSIGN_OR_RETURN(runner->steps_,
                       model.StartDeviceSteps(options.max_sequences, *runner->attention_));
  runner->graphs_ = options.graphs;
  return runner;
}

absl::StatusOr<std::span<const float>> DeviceStepRunner::Step(const StepBatch& batch) {
  if (batch.sequences.size() > static_cast<std::size_t>(options_.max_sequences)) {
    return absl::InternalError(absl::StrCat("a step of ", batch.sequences.size(),
                                            " sequences, admitted are ", options_.max_sequences));
  }
  KVF_RETURN_IF_ERROR(kernels::UseDevice(options_.gpu));
  const std::span<float> logits(logits_.as<float>(), batch.sequences.size() * vocabulary());
  absl::Status status = Run(batch, logits);
  if (!status.ok()) {
    // What was enqueued before the error still works on the caches. A second error says no more.
    stream_.Synchronize().IgnoreError();
    return status;
  }
  batch.drop_cancelled();
  return logits;
}

absl::Status DeviceStepRunner::Run(const StepBatch& batch, std::span<float> logits) {
  KVF_RETURN_IF_ERROR(attention_->Begin(batch.sequences));
  KVF_RETURN_IF_ERROR(steps_->SetInputs(batch.tokens, batch.positions));
  KVF_RETURN_IF_ERROR(model_begin_->Record(stream_));
  KVF_RETURN_IF_ERROR(RunModel(batch.sequences.size()));
  KVF_RETURN_IF_ERROR(model_end_->Record(stream_));
  return steps_->FetchLogits(logits);  // waits for the stream
}

absl::Status DeviceStepRunner::RunModel(std::size_t sequences) {
  if (!graphs_) return steps_->Enqueue();
  if (steps_->memory_epoch() != memory_epoch_) {
    for (auto& [of, step] : known_) step.graph.reset();
    memory_epoch_ = steps_->memory_epoch();
  }
  StepState& step = known_[{sequences, attention_->launch_kinds()}];
  if (!step.graph.has_value() && step.ran) {
    auto graph = kernels::Graph::Capture(stream_, [&] { return steps_->Enqueue(); });
    // A capture that needed memory may have made the allocator give some back.
    if (graph.ok() && steps_->memory_epoch() == memory_epoch_) {
      step.graph.emplace(*std::move(graph));
    } else if (!graph.ok()) {
      Log(LogLevel::kWarning, "cuda_graphs_off", {{"why", std::string(graph.status().message())}});
      graphs_ = false;
    }
  }
  if (step.graph.has_value()) return step.graph->Launch(stream_);
  step.ran = true;
  return steps_->Enqueue();
}

}  // namespace kvferry::decode
