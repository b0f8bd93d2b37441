#include "model/device_transformer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/rope.h"
#include "model/run_checks.h"

namespace kvferry::model {
namespace {

// Reads tensors of one layer, or of none, into device memory.
struct Reader {
  const WeightFiles& files;
  at::Device device;
  at::ScalarType type;
  std::string prefix;

  absl::StatusOr<at::Tensor> operator()(const char* name,
                                        const std::vector<std::int64_t>& shape) const {
    KVF_ASSIGN_OR_RETURN(std::vector<float> values, files.Read(absl::StrCat(prefix, name), shape));
    return at::from_blob(values.data(), shape, at::kFloat).to(device, type, false, true);
  }
  // Stacked: matrices of the same width, or vectors.
  absl::StatusOr<at::Tensor> operator()(
      const std::vector<std::pair<const char*, std::vector<std::int64_t>>>& parts) const {
    std::vector<at::Tensor> tensors;
    for (const auto& [name, shape] : parts) {
      KVF_ASSIGN_OR_RETURN(at::Tensor tensor, (*this)(name, shape));
      tensors.push_back(std::move(tensor));
    }
    return at::cat(tensors);
  }
};

// Channel i of a head turns with channel i + head_dim / 2. The result is fp32.
at::Tensor Rotate(const at::Tensor& heads, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = heads.chunk(2, -1);
  return at::addcmul(heads * cos, at::cat({halves[1], halves[0]}, -1), sin);
}

// Does not wait for the stream: through page-locked memory, which LibTorch keeps until the copy is
// done.
at::Tensor ToDevice(std::span<const std::int32_t> values, at::Device device) {
  at::Tensor tensor = at::from_blob(const_cast<std::int32_t*>(values.data()),
                                    {static_cast<std::int64_t>(values.size())}, at::kInt);
  if (!device.is_cpu()) tensor = tensor.pin_memory();
  return tensor.to(device, at::kInt, /*non_blocking=*/true, /*copy=*/true);
}

}  // namespace

absl::StatusOr<DeviceTransformer> DeviceTransformer::Create(const WeightFiles& files,
                                                            at::Device device,
                                                            ComputeType compute) {
  DeviceTransformer model(files.config());
  const ModelConfig& config = model.config_;
  const std::int64_t hidden = config.hidden, d = config.head_dim, inner = config.intermediate;
  const std::int64_t q = config.q_heads * d, kv = config.kv_heads * d;
  Reader read{files, device, compute == ComputeType::kBf16 ? at::kBFloat16 : at::kFloat, ""};
  KVF_ASSIGN_OR_RETURN(model.embedding_,
                       read("model.embed_tokens.weight", {config.vocabulary, hidden}));
  model.head_ = model.embedding_;
  if (!config.tied_embeddings) {
    KVF_ASSIGN_OR_RETURN(model.head_, read("lm_head.weight", {config.vocabulary, hidden}));
  }
  KVF_ASSIGN_OR_RETURN(model.final_norm_, read("model.norm.weight", {hidden}));
  for (int i = 0; i < config.layers; ++i) {
    read.prefix = absl::StrCat("model.layers.", i, ".");
    Layer layer;
    KVF_ASSIGN_OR_RETURN(layer.attention_norm, read("input_layernorm.weight", {hidden}));
    KVF_ASSIGN_OR_RETURN(layer.mlp_norm, read("post_attention_layernorm.weight", {hidden}));
    if (config.qk_norm) {
      KVF_ASSIGN_OR_RETURN(layer.q_norm, read("self_attn.q_norm.weight", {d}));
      KVF_ASSIGN_OR_RETURN(layer.k_norm, read("self_attn.k_norm.weight", {d}));
    }
    KVF_ASSIGN_OR_RETURN(layer.qkv, read({{"self_attn.q_proj.weight", {q, hidden}},
                                          {"self_attn.k_proj.weight", {kv, hidden}},
                                          {"self_attn.v_proj.weight", {kv, hidden}}}));
    if (config.attention_bias) {
      KVF_ASSIGN_OR_RETURN(layer.qkv_bias, read({{"self_attn.q_proj.bias", {q}},
                                                 {"self_attn.k_proj.bias", {kv}},
                                                 {"self_attn.v_proj.bias", {kv}}}));
    }
    KVF_ASSIGN_OR_RETURN(layer.output, read("self_attn.o_proj.weight", {hidden, q}));
    KVF_ASSIGN_OR_RETURN(layer.gate_up, read({{"mlp.gate_proj.weight", {inner, hidden}},
                                              {"mlp.up_proj.weight", {inner, hidden}}}));
    KVF_ASSIGN_OR_RETURN(layer.down, read("mlp.down_proj.weight", {hidden, inner}));
    model.layers_.push_back(std::move(layer));
  }

  const Rope rope(config);
  const auto half = static_cast<std::size_t>(d / 2);
  std::vector<float> cos(static_cast<std::size_t>(config.max_context_tokens) * half), sin(cos);
  for (int position = 0; position < config.max_context_tokens; ++position) {
    rope.Angles(position, cos.data() + position * half, sin.data() + position * half);
  }
  const auto table = [&](std::vector<float>& values) {
    return at::from_blob(values.data(), {config.max_context_tokens, d / 2}, at::kFloat)
        .to(device, at::kFloat, false, true);
  };
  model.cos_ = table(cos);
  model.sin_ = table(sin);
  return model;
}

absl::Status DeviceTransformer::Check(std::span<const std::int32_t> tokens,
                                      std::span<const std::int32_t> positions) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    KVF_RETURN_IF_ERROR(CheckToken(config_, i, tokens[i], positions[i]));
  }
  return absl::OkStatus();
}

DeviceTransformer::Rows DeviceTransformer::Begin(std::span<const std::int32_t> tokens,
                                                 std::span<const std::int32_t> positions) const {
  return Begin(ToDevice(tokens, device()), ToDevice(positions, device()));
}

DeviceTransformer::Rows DeviceTransformer::Begin(const at::Tensor& tokens,
                                                 const at::Tensor& positions) const {
  const at::Tensor cos = cos_.index_select(0, positions), sin = sin_.index_select(0, positions);
  return {.x = embedding_.index_select(0, tokens),
          .cos = at::cat({cos, cos}, -1).unsqueeze(1),
          .sin = at::cat({-sin, sin}, -1).unsqueeze(1)};
}

DeviceTransformer::Qkv DeviceTransformer::ProjectQkv(int index, const Rows& rows,
                                                     at::ScalarType type) const {
  const Layer& layer = layers_[index];
  const std::int64_t q = config_.q_heads, kv = config_.kv_heads;
  const at::Tensor heads = at::linear(Norm(rows.x, layer.attention_norm), layer.qkv, layer.qkv_bias)
                               .view({rows.x.size(0), q + 2 * kv, config_.head_dim});
  at::Tensor turning = heads.narrow(1, 0, q + kv);
  if (config_.qk_norm) {
    turning = at::cat(
        {Norm(heads.narrow(1, 0, q), layer.q_norm), Norm(heads.narrow(1, q, kv), layer.k_norm)}, 1);
  }
  const at::Tensor turned = Rotate(turning, rows.cos, rows.sin);  // q and k at once
  return {.q = turned.narrow(1, 0, q).to(type),
          .k = turned.narrow(1, q, kv).to(type),
          .v = heads.narrow(1, q + kv, kv).to(type)};
}

void DeviceTransformer::FinishLayer(int index, const at::Tensor& attended, Rows& rows) const {
  const Layer& layer = layers_[index];
  rows.x = rows.x + at::linear(attended.reshape({attended.size(0), -1}), layer.output);
  const auto gate_up = at::linear(Norm(rows.x, layer.mlp_norm), layer.gate_up).chunk(2, -1);
  rows.x = rows.x + at::linear(at::silu(gate_up[0]) * gate_up[1], layer.down);
}

at::Tensor DeviceTransformer::Logits(const Rows& rows) const {
  return at::linear(Norm(rows.x, final_norm_), head_).to(at::kFloat);
}

at::Tensor DeviceTransformer::Norm(const at::Tensor& x, const at::Tensor& weight) const {
  return at::rms_norm(x, weight.sizes(), weight, config_.rms_epsilon);
}

}  // namespace kvferry::model
