#include "model/prompt_cache.h"

#include <ATen/ops/empty.h>

#include <utility>

namespace kvferry::model {

PromptCache::PromptCache(const ModelConfig& config, int max_tokens, at::ScalarType compute,
                         codec::Raw16 leaves, at::Device device)
    : leaves_(leaves) {
  const at::ScalarType raw = leaves == codec::Raw16::kBf16 ? at::kBFloat16 : at::kHalf;
  const auto make = [&](at::ScalarType type) {
    return at::empty({config.kv_heads, max_tokens, config.head_dim},
                     at::TensorOptions().dtype(type).device(device));
  };
  for (int i = 0; i < config.layers; ++i) {
    Layer layer{.k = make(compute), .v = make(compute)};
    layer.raw_k = compute == raw ? layer.k : make(raw);
    layer.raw_v = compute == raw ? layer.v : make(raw);
    layers_.push_back(std::move(layer));
  }
}

void PromptCache::Store(int index, std::int64_t begin, const at::Tensor& k, const at::Tensor& v) {
  Layer& layer = layers_[index];
  const std::int64_t tokens = k.size(1);
  layer.k.narrow(1, begin, tokens).copy_(k);
  layer.v.narrow(1, begin, tokens).copy_(v);
  if (layer.raw_k.is_same(layer.k)) return;
  layer.raw_k.narrow(1, begin, tokens).copy_(k);
  layer.raw_v.narrow(1, begin, tokens).copy_(v);
}

codec::KvView PromptCache::View(int index, std::int64_t tokens) const {
  const at::Tensor& k = layers_[index].raw_k;
  return {.k = static_cast<const std::uint16_t*>(k.data_ptr()),
          .v = static_cast<const std::uint16_t*>(layers_[index].raw_v.data_ptr()),
          .type = leaves_,
          .kv_heads = static_cast<int>(k.size(0)),
          .tokens = static_cast<int>(tokens),
          .head_dim = static_cast<int>(k.size(2)),
          .head_stride = k.stride(0),
          .token_stride = k.stride(1)};
}

}  // namespace kvferry::model
