#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "decode_node/device_attention.h"
#include "decode_node/step_runner.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/stream.h"
#include "model/model.h"

namespace kvferry::decode {

struct DeviceStepOptions {
  int gpu = 0;
  int max_sequences = 0;  // of one step
  bool graphs = true;     // steps of a size that was there before are one launch
};

// Steps over a cache in the memory of one GPU, all on one stream: the inputs (DeviceAttention),
// then the model with an append and an attention per layer. The second step of as many sequences
// with the same kernels is captured as a CUDA graph, and those after it are its launch. Cancelled
// sequences are let go after the step, which their memory is used in until its end.
class DeviceStepRunner final : public StepRunner {
 public:
  using MakeAttention = DeviceAttention::MakeAttention;

  // All outlive it; model and store are on the GPU, `stream` is the model's and the store's.
  // kUnimplemented: no attention kernel for the codec and shape, with the list of those that there
  // are. kResourceExhausted: device memory.
  static absl::StatusOr<std::unique_ptr<DeviceStepRunner>> Create(
      const DeviceStepOptions& options, model::Model& model, const CacheStore& store,
      kernels::Stream& stream, const MakeAttention& make_attention);

  int vocabulary() const override { return model_.config().vocabulary; }
  absl::StatusOr<std::span<const float>> Step(const StepBatch& batch) override;
  // What the model's kernels of the last step took on the GPU, from the first to the last.
  absl::StatusOr<absl::Duration> model_time() const { return model_end_->Since(*model_begin_); }

 private:
  DeviceStepRunner(const DeviceStepOptions& options, model::Model& model, kernels::Stream& stream)
      : options_(options), model_(model), stream_(stream) {}

  absl::Status Run(const StepBatch& batch, std::span<float> logits);
  // The model's part, as kernels or as a graph.
  absl::Status RunModel(std::size_t sequences);

  const DeviceStepOptions options_;
  model::Model& model_;
  kernels::Stream& stream_;

  std::unique_ptr<DeviceAttention> attention_;
  kernels::PinnedBuffer logits_;  // [max_sequences, vocabulary] fp32
  std::optional<kernels::Event> model_begin_, model_end_;

  std::unique_ptr<model::DeviceSteps> steps_;
  // What is known of steps of so many sequences and of such launch_kinds.
  struct StepState {
    bool ran = false;
    std::optional<kernels::Graph> graph;
  };
  std::map<std::pair<std::size_t, std::vector<int>>, StepState> known_;
  std::uint64_t memory_epoch_ = 0;
  bool graphs_ = false;
};

}  // namespace kvferry::decode
