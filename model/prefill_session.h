#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"
#include "model/prompt_cache.h"
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
  absl::Status RunAhead(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override {
    return RunTokens(tokens, on_layer, {});
  }
  absl::Status Score(std::span<const std::int32_t> tokens, std::span<float> logits) override;
  std::span<const float> logits() const override { return logits_; }
  absl::Status Rewind(int tokens) override;

 private:
  TorchPrefillSession(const Transformer& transformer, int max_tokens, PromptCache cache);
  // logits: of so many of the last tokens: of none, of one, or of all that are run.
  absl::Status RunTokens(std::span<const std::int32_t> tokens, const OnLayer& on_layer,
                         std::span<float> logits);
  // rows: whose logits are wanted, the last ones.
  absl::Status RunLayers(std::int64_t past, std::int64_t rows, const OnLayer& on_layer);
  void StoreKv(int layer, std::int64_t past);
  void Attend(int layer, std::int64_t past, const at::Tensor& mask);
  void KeepLastRow();

  const Transformer& transformer_;
  const int max_tokens_;
  int tokens_ = 0;
  Activations activations_;
  PromptCache cache_;
  std::vector<float> logits_;
};

}  // namespace kvferry::model
