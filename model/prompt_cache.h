#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kvcodec/kv_view.h"
#include "model/model_config.h"

namespace kvferry::model {

// Uncompressed K and V of one prompt in all layers: in the compute type, for exact attention, and
// in the 16 bits that leave, which are the same tensors where the types are the same. May throw
// c10::Error. Thread: one at a time; stored values never change.
class PromptCache {
 public:
  PromptCache(const ModelConfig& config, int max_tokens, at::ScalarType compute,
              codec::Raw16 leaves, at::Device device);

  // k, v: [kv_heads, tokens, head_dim], any type; they become the tokens from `begin` on.
  void Store(int layer, std::int64_t begin, const at::Tensor& k, const at::Tensor& v);

  // [kv_heads, max_tokens, head_dim] in the compute type.
  const at::Tensor& k(int layer) const { return layers_[layer].k; }
  const at::Tensor& v(int layer) const { return layers_[layer].v; }
  // The first `tokens` tokens as they leave, valid as long as this lives.
  codec::KvView View(int layer, std::int64_t tokens) const;

 private:
  struct Layer {
    at::Tensor k, v;
    at::Tensor raw_k, raw_v;
  };

  codec::Raw16 leaves_;
  std::vector<Layer> layers_;
};

}  // namespace kvferry::model
