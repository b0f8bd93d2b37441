#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"
#include "model/weight_files.h"

namespace kvferry::model {

// Weights and everything of a layer but its attention, as tensors of one device in the compute
// type: LibTorch's own kernels do the work. Enqueued on the current stream, nothing is waited for.
// May throw c10::Error. Immutable. Thread: any.
class DeviceTransformer {
 public:
  static absl::StatusOr<DeviceTransformer> Create(const WeightFiles& files, at::Device device,
                                                  ComputeType compute);

  const ModelConfig& config() const { return config_; }
  at::Device device() const { return embedding_.device(); }
  at::ScalarType type() const { return embedding_.scalar_type(); }

  // kInvalidArgument: a token outside the vocabulary, a position outside the context.
  absl::Status Check(std::span<const std::int32_t> tokens,
                     std::span<const std::int32_t> positions) const;

  // One row per token, before the first layer.
  struct Rows {
    at::Tensor x;  // [rows, hidden], the residual stream
    // Of RoPE, what a channel and its partner meet: [rows, 1, head_dim] fp32.
    at::Tensor cos, sin;
  };
  Rows Begin(std::span<const std::int32_t> tokens, std::span<const std::int32_t> positions) const;
  // The same from integers on the device: [rows].
  Rows Begin(const at::Tensor& tokens, const at::Tensor& positions) const;

  // With bias, norm and rotation. q: [rows, q_heads, head_dim]; k, v: [rows, kv_heads, head_dim].
  struct Qkv {
    at::Tensor q, k, v;
  };
  // In `type`, to which q and k are rounded once.
  Qkv ProjectQkv(int layer, const Rows& rows, at::ScalarType type) const;
  // attended: [rows, q_heads, head_dim]. Then the feed-forward network.
  void FinishLayer(int layer, const at::Tensor& attended, Rows& rows) const;
  // [rows, vocabulary] fp32.
  at::Tensor Logits(const Rows& rows) const;

 private:
  struct Layer {
    at::Tensor attention_norm, mlp_norm;  // [hidden]
    at::Tensor q_norm, k_norm;            // [head_dim], or undefined
    at::Tensor qkv, qkv_bias;             // [q + 2 kv, hidden], [q + 2 kv] or undefined
    at::Tensor output;                    // [hidden, q]
    at::Tensor gate_up;                   // [2 * intermediate, hidden]
    at::Tensor down;                      // [hidden, intermediate]
  };

  explicit DeviceTransformer(ModelConfig config) : config_(std::move(config)) {}
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const;

  ModelConfig config_;
  at::Tensor embedding_;   // [vocabulary, hidden]
  at::Tensor head_;        // [vocabulary, hidden]; the embedding's when tied
  at::Tensor final_norm_;  // [hidden]
  at::Tensor cos_, sin_;   // [max_context_tokens, head_dim / 2] fp32
  std::vector<Layer> layers_;
};

}  // namespace kvferry::model
