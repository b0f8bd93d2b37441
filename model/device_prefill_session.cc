#include "model/device_prefill_session.h"

#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <numeric>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "model/run_checks.h"
#include "model/torch_status.h"

namespace kvferry::model {

absl::StatusOr<std::unique_ptr<DevicePrefillSession>> DevicePrefillSession::Create(
    const DeviceTransformer& transformer, const TorchDevice& device, int max_tokens,
    codec::Raw16 type) {
  const ModelConfig& config = transformer.config();
  KVF_RETURN_IF_ERROR(CheckPromptTokens(config, max_tokens));
  std::unique_ptr<DevicePrefillSession> session(
      new DevicePrefillSession(transformer, device, max_tokens, type));
  const at::ScalarType raw_type = type == codec::Raw16::kBf16 ? at::kBFloat16 : at::kHalf;
  KVF_RETURN_IF_ERROR(CatchTorch("allocating the K and V of a prompt", [&] {
    const c10::InferenceMode guard;
    const TorchDevice::Scope scope(device);
    for (int layer = 0; layer < config.layers; ++layer) {
      const auto make = [&](at::ScalarType dtype) {
        return at::empty({config.kv_heads, max_tokens, config.head_dim},
                         at::TensorOptions().dtype(dtype).device(transformer.device()));
      };
      LayerCache cache{.k = make(transformer.type()), .v = make(transformer.type())};
      cache.raw_k = transformer.type() == raw_type ? cache.k : make(raw_type);
      cache.raw_v = transformer.type() == raw_type ? cache.v : make(raw_type);
      session->cache_.push_back(std::move(cache));
    }
    return absl::OkStatus();
  }));
  return session;
}

absl::Status DevicePrefillSession::Run(std::span<const std::int32_t> tokens,
                                       const OnLayer& on_layer) {
  KVF_RETURN_IF_ERROR(CheckPromptChunk(tokens.size(), tokens_, max_tokens_));
  std::vector<std::int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(tokens_));
  KVF_RETURN_IF_ERROR(transformer_.Check(tokens, positions));
  return CatchTorch("prefill", [&]() -> absl::Status {
    const c10::InferenceMode guard;
    const TorchDevice::Scope scope(device_);
    return RunLayers(transformer_.Begin(tokens, positions), on_layer);
  });
}

absl::Status DevicePrefillSession::RunLayers(DeviceTransformer::Rows rows,
                                             const OnLayer& on_layer) {
  const std::int64_t count = rows.x.size(0), tokens = tokens_ + count;
  const int layers = transformer_.config().layers;
  for (int layer = 0; layer < layers; ++layer) {
    LayerCache& cache = cache_[layer];
    DeviceTransformer::Qkv qkv = transformer_.ProjectQkv(layer, rows);
    StoreKv(qkv, cache);
    KVF_RETURN_IF_ERROR(on_layer(layer, View(cache, tokens)));
    if (layer + 1 == layers) {  // nothing but the last token's logits is wanted of the rest
      qkv.q = qkv.q.narrow(0, count - 1, 1);
      rows.x = rows.x.narrow(0, count - 1, 1);
    }
    transformer_.FinishLayer(layer, Attend(qkv.q, cache, tokens), rows);
  }
  tokens_ = tokens;
  const at::Tensor logits = transformer_.Logits(rows).cpu();  // waits for the stream
  logits_.assign(logits.const_data_ptr<float>(), logits.const_data_ptr<float>() + logits.numel());
  return absl::OkStatus();
}

void DevicePrefillSession::StoreKv(const DeviceTransformer::Qkv& qkv, LayerCache& cache) const {
  const std::int64_t rows = qkv.k.size(0);
  const at::Tensor k = qkv.k.permute({1, 0, 2}), v = qkv.v.permute({1, 0, 2});
  cache.k.narrow(1, tokens_, rows).copy_(k);
  cache.v.narrow(1, tokens_, rows).copy_(v);
  if (cache.raw_k.is_same(cache.k)) return;
  cache.raw_k.narrow(1, tokens_, rows).copy_(k);
  cache.raw_v.narrow(1, tokens_, rows).copy_(v);
}

codec::KvView DevicePrefillSession::View(const LayerCache& cache, std::int64_t tokens) const {
  const ModelConfig& config = transformer_.config();
  return {.k = static_cast<const std::uint16_t*>(cache.raw_k.data_ptr()),
          .v = static_cast<const std::uint16_t*>(cache.raw_v.data_ptr()),
          .type = type_,
          .kv_heads = config.kv_heads,
          .tokens = static_cast<int>(tokens),
          .head_dim = config.head_dim,
          .head_stride = cache.raw_k.stride(0),
          .token_stride = cache.raw_k.stride(1)};
}

at::Tensor DevicePrefillSession::Attend(const at::Tensor& q, const LayerCache& cache,
                                        std::int64_t tokens) const {
  const std::int64_t rows = q.size(0);
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(2)));
  const at::Tensor k = cache.k.narrow(1, 0, tokens), v = cache.v.narrow(1, 0, tokens);
  if (q.is_cuda() && q.scalar_type() == at::kBFloat16 && q.size(2) % 8 == 0) {
    // FlashAttention-2 itself: its causal order ends at the last key, as a later chunk wants it;
    // scaled_dot_product_attention has it begin at the first.
    const auto out = at::_flash_attention_forward(
        q.unsqueeze(0), k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0),
        /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, rows, tokens, /*dropout_p=*/0, /*is_causal=*/rows > 1,
        /*return_debug_mask=*/false, scale);
    return std::get<0>(out).squeeze(0);
  }
  std::optional<at::Tensor> mask;
  if (rows > 1) {
    mask = at::ones({rows, tokens}, q.options().dtype(at::kBool)).tril(tokens - rows);
  }
  return at::scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), k.unsqueeze(0),
                                          v.unsqueeze(0), mask, /*dropout_p=*/0,
                                          /*is_causal=*/false, scale, /*enable_gqa=*/true)
      .squeeze(0)
      .transpose(0, 1);
}

}  // namespace kvferry::model
