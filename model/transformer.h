#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/linear.h"
#include "model/model.h"
#include "model/rope.h"
#include "model/weight_files.h"

namespace kvferry::model {

// The activations of up to some number of tokens on their way through the layers.
struct Activations {
  std::int64_t rows = 0;
  std::vector<float> x;         // [rows, hidden], the residual stream
  std::vector<float> normed;    // [rows, hidden]
  std::vector<float> qkv;       // [rows, q_heads + 2 * kv_heads, head_dim]
  std::vector<float> attended;  // [rows, q_heads, head_dim]
  std::vector<float> gate_up;   // [rows, 2, intermediate]
  std::vector<float> swiglu;    // [rows, intermediate]
  std::vector<float> cos, sin;  // [rows, head_dim / 2]
};

// Weights and everything of a layer but its attention. fp32 activations. May throw c10::Error.
// Thread: one at a time.
class Transformer {
 public:
  static absl::StatusOr<Transformer> Create(const WeightFiles& files, ComputeType compute);

  const ModelConfig& config() const { return config_; }

  // Embeddings and rotations of `tokens`, which stand at `positions`. kInvalidArgument: a token
  // outside the vocabulary, a position outside the context.
  absl::Status Begin(std::span<const std::int32_t> tokens, std::span<const std::int32_t> positions,
                     Activations& a) const;
  // x -> qkv, with bias, norm and rotation.
  void ProjectQkv(int layer, Activations& a) const;
  // attended -> x, then the feed-forward network.
  void FinishLayer(int layer, Activations& a) const;
  // Of row `first` and those after it: x -> logits [rows - first, vocabulary].
  void Logits(Activations& a, std::int64_t first, float* logits) const;

 private:
  struct Layer {
    std::vector<float> attention_norm, mlp_norm;  // [hidden]
    std::vector<float> q_norm, k_norm;            // [head_dim], or empty
    Linear qkv, output, gate_up, down;
  };

  Transformer(ModelConfig config) : config_(std::move(config)), rope_(config_) {}

  absl::StatusOr<Layer> LoadLayer(const WeightFiles& files, int index, ComputeType compute) const;
  const Linear& head() const { return config_.tied_embeddings ? embedding_ : head_; }

  ModelConfig config_;
  Rope rope_;
  Linear embedding_;  // [vocabulary, hidden]
  Linear head_;       // [vocabulary, hidden], empty when tied
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
};

}  // namespace kvferry::model
