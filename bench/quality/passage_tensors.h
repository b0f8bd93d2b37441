#pragma once

#include <ATen/core/Tensor.h>

#include "bench/quality/reference_quantize.h"
#include "kvcodec/kv_view.h"
#include "model/model_config.h"

namespace kvferry::bench {

struct KeysValues {
  at::Tensor k, v;  // [kv_heads, tokens, head_dim] fp32
};

// K and V of one layer of a prompt on `device`, where they lie.
KeysValues ToTensors(const codec::KvView& kv, c10::Device device);

// Of the first `tokens` positions.
Rotations MakeRotations(const model::ModelConfig& config, int tokens, c10::Device device);

// Keys as RoPE turns them, and back. k: [heads, tokens, head_dim], `by`: of these tokens.
at::Tensor Turn(const at::Tensor& k, const Rotations& by);
at::Tensor TurnBack(const at::Tensor& k, const Rotations& by);

}  // namespace kvferry::bench
