#include "bench/quality/passage_tensors.h"

#include <ATen/ATen.h>

#include "model/rope.h"

namespace kvferry::bench {

KeysValues ToTensors(const codec::KvView& kv, c10::Device device) {
  const auto wrap = [&](const std::uint16_t* data) {
    return at::from_blob(const_cast<std::uint16_t*>(data), {kv.kv_heads, kv.tokens, kv.head_dim},
                         {kv.head_stride, kv.token_stride, 1},
                         at::TensorOptions().dtype(at::kHalf).device(device))
        .to(at::kFloat);
  };
  return {wrap(kv.k), wrap(kv.v)};
}

Rotations MakeRotations(const model::ModelConfig& config, int tokens, c10::Device device) {
  const model::Rope rope(config);
  const std::int64_t half = config.head_dim / 2;
  Rotations rotations = {at::empty({tokens, half}, at::kFloat),
                         at::empty({tokens, half}, at::kFloat)};
  for (int i = 0; i < tokens; ++i) {
    rope.Angles(i, rotations.cos.mutable_data_ptr<float>() + i * half,
                rotations.sin.mutable_data_ptr<float>() + i * half);
  }
  return {rotations.cos.to(device), rotations.sin.to(device)};
}

at::Tensor Turn(const at::Tensor& k, const Rotations& by) {
  const std::int64_t half = k.size(2) / 2;
  const at::Tensor low = k.narrow(2, 0, half), high = k.narrow(2, half, half);
  return at::cat({low * by.cos - high * by.sin, high * by.cos + low * by.sin}, 2);
}

at::Tensor TurnBack(const at::Tensor& k, const Rotations& by) { return Turn(k, {by.cos, -by.sin}); }

}  // namespace kvferry::bench
