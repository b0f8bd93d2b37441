#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"
#include "model/transformer.h"

namespace kvferry::model {

// Exact attention of one prompt on LibTorch's flash kernel for CPUs, over K and V in the compute
// type; beside them stand the 16-bit K and V that leave. Thread: one at a time.
class TorchPrefillSession : public PrefillSession {
 public:
  // `transformer` outlives the session.
  static absl::StatusOr<std::unique_ptr<TorchPrefillSession>> Create(const Transformer& transformer,
                                                                     ComputeType compute,
                                                                     int max_tokens,
                                                                     codec::Raw16 type);

  absl::Status Run(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override;
  std::span<const float> logits() const override { return logits_; }

 private:
  // [kv_heads, max_tokens, head_dim] each
  struct LayerCache {
    at::Tensor k, v;          // compute type
    at::Tensor raw_k, raw_v;  // 16 bit; the same tensors when the types are the same
  };

  TorchPrefillSession(const Transformer& transformer, int max_tokens, codec::Raw16 type);
  absl::Status RunLayers(std::int64_t past, const OnLayer& on_layer);
  void StoreKv(std::int64_t past, LayerCache& cache);
  codec::KvView View(const LayerCache& cache, std::int64_t tokens) const;
  void Attend(const LayerCache& cache, std::int64_t past, const at::Tensor& mask);
  void KeepLastRow();

  const Transformer& transformer_;
  const int max_tokens_;
  const codec::Raw16 type_;
  int tokens_ = 0;
  Activations activations_;
  std::vector<LayerCache> cache_;
  std::vector<float> logits_;
};

}  // namespace kvferry::model
