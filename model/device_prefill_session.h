#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/device_transformer.h"
#include "model/model.h"
#include "model/prompt_cache.h"
#include "model/torch_device.h"

namespace kvferry::model {

// Exact attention of one prompt over K and V in device memory, beside which stand the 16-bit K and
// V that leave. Thread: one at a time.
class DevicePrefillSession : public PrefillSession {
 public:
  // `transformer` and `device` outlive the session.
  static absl::StatusOr<std::unique_ptr<DevicePrefillSession>> Create(
      const DeviceTransformer& transformer, const TorchDevice& device, int max_tokens,
      codec::Raw16 type);

  absl::Status Run(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override;
  absl::Status RunAhead(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override;
  absl::Status Score(std::span<const std::int32_t> tokens, std::span<float> logits) override;
  std::span<const float> logits() const override { return logits_; }
  absl::Status Rewind(int tokens) override;

 private:
  DevicePrefillSession(const DeviceTransformer& transformer, const TorchDevice& device,
                       int max_tokens, PromptCache cache)
      : transformer_(transformer),
        device_(device),
        max_tokens_(max_tokens),
        cache_(std::move(cache)),
        logits_(static_cast<std::size_t>(transformer.config().vocabulary)) {}
  // logits: of so many of the last tokens: of none, of one, or of all that are run.
  absl::Status RunTokens(std::span<const std::int32_t> tokens, const OnLayer& on_layer,
                         std::span<float> logits);
  absl::Status RunLayers(DeviceTransformer::Rows rows, const OnLayer& on_layer,
                         std::span<float> logits);
  // q: the last rows of the `tokens` that the cache holds. Same shape back.
  at::Tensor Attend(int layer, const at::Tensor& q, std::int64_t tokens) const;

  // Until the last chunk that ran ahead is computed; the work so far is the next such chunk.
  void AwaitChunkBefore();

  const DeviceTransformer& transformer_;
  const TorchDevice& device_;
  const int max_tokens_;
  std::int64_t tokens_ = 0;
  std::optional<c10::Event> ahead_;  // after the last chunk that ran ahead
  PromptCache cache_;
  std::vector<float> logits_;
};

}  // namespace kvferry::model
