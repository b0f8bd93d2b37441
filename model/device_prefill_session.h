#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/device_transformer.h"
#include "model/model.h"
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
  std::span<const float> logits() const override { return logits_; }

 private:
  // [kv_heads, max_tokens, head_dim] each
  struct LayerCache {
    at::Tensor k, v;          // compute type
    at::Tensor raw_k, raw_v;  // 16 bit; the same tensors when the types are the same
  };

  DevicePrefillSession(const DeviceTransformer& transformer, const TorchDevice& device,
                       int max_tokens, codec::Raw16 type)
      : transformer_(transformer), device_(device), max_tokens_(max_tokens), type_(type) {}
  absl::Status RunLayers(DeviceTransformer::Rows rows, const OnLayer& on_layer);
  void StoreKv(const DeviceTransformer::Qkv& qkv, LayerCache& cache) const;
  codec::KvView View(const LayerCache& cache, std::int64_t tokens) const;
  // q: the last rows of the `tokens` that the cache holds. Same shape back.
  at::Tensor Attend(const at::Tensor& q, const LayerCache& cache, std::int64_t tokens) const;

  const DeviceTransformer& transformer_;
  const TorchDevice& device_;
  const int max_tokens_;
  const codec::Raw16 type_;
  std::int64_t tokens_ = 0;
  std::vector<LayerCache> cache_;
  std::vector<float> logits_;
};

}  // namespace kvferry::model
