#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "decode_node/step_runner.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/stream.h"
#include "kernels/decode_attention.h"
#include "model/model.h"

namespace kvferry::decode {

struct DeviceStepOptions {
  int gpu = 0;
  int max_sequences = 0;  // of one step
  bool graphs = true;     // steps of a size that was there before are one launch
};

// Steps over a cache in the memory of one GPU, all on one stream: one copy of what the step is
// about, one plan per kind of layer, then the model with an append and an attention per layer. The
// addresses of everything that a step reads stay for life: the second step of as many sequences is
// captured as a CUDA graph, and those after it are its launch. Cancelled sequences are let go after
// the step, which their memory is used in until its end.
class DeviceStepRunner final : public StepRunner, private model::DeviceDecodeAttention {
 public:
  using MakeAttention = std::function<absl::StatusOr<std::unique_ptr<kernels::DecodeAttention>>(
      const kernels::AttentionConfig&)>;

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
  DeviceStepRunner(const DeviceStepOptions& options, model::Model& model, const CacheStore& store,
                   kernels::Stream& stream)
      : options_(options), model_(model), store_(store), stream_(stream) {}

  absl::Status MakeAttentions(const MakeAttention& make_attention);
  absl::Status AllocateInputs();
  // Fills inputs_host_ and lengths_; returns how many rows there are.
  int DescribeBatch(const StepBatch& batch);
  absl::Status Run(const StepBatch& batch, std::span<float> logits);
  // The model's part, as kernels or as a graph.
  absl::Status RunModel();

  codec::Raw16 raw_type() const override { return store_.codec().raw_type; }
  absl::Status AppendAndAttend(int layer, const std::uint16_t* q, const std::uint16_t* k,
                               const std::uint16_t* v, std::uint16_t* out) override;

  const DeviceStepOptions options_;
  model::Model& model_;
  const CacheStore& store_;
  kernels::Stream& stream_;

  std::vector<std::unique_ptr<kernels::DecodeAttention>> attentions_;  // one per kind of layer
  std::vector<std::size_t> attention_of_layer_;

  // [max_sequences] AttentionSequence, [max_sequences] AppendTarget, then the rows of all
  // sequences: on the host and, by one copy, on the GPU.
  kernels::PinnedBuffer inputs_host_;
  kernels::DeviceBuffer inputs_;
  kernels::DeviceBuffer page_layers_;  // [layers] PageLayer
  kernels::DeviceBuffer page_table_;   // [layers, rows of the store] addresses
  kernels::PinnedBuffer logits_;       // [max_sequences, vocabulary] fp32
  std::optional<kernels::Event> model_begin_, model_end_;

  std::unique_ptr<model::DeviceSteps> steps_;
  // What is known of steps of so many sequences.
  struct SizeState {
    bool ran = false;
    std::optional<kernels::Graph> graph;
  };
  std::vector<SizeState> sizes_;  // [max_sequences + 1]
  std::uint64_t memory_epoch_ = 0;
  bool graphs_ = false;

  std::vector<kernels::AttentionLength> lengths_;  // of the step
  int sequences_ = 0;
};

}  // namespace kvferry::decode
