#include "model/transformer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/run_checks.h"

namespace kvferry::model {
namespace {

// Rows that are worth a thread.
constexpr std::int64_t kRowGrain = 8;

template <typename F>
void EachRow(std::int64_t rows, F one) {
  if (rows < kRowGrain) {
    for (std::int64_t row = 0; row < rows; ++row) one(row);
    return;
  }
  at::parallel_for(0, rows, kRowGrain, [&one](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) one(row);
  });
}

void RmsNorm(const float* x, const std::vector<float>& weight, float epsilon, float* out) {
  constexpr std::size_t kSums = 8;  // independent, so that the loop runs in vector registers
  const std::size_t size = weight.size();
  float sums[kSums] = {};
  std::size_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (std::size_t j = 0; j < kSums; ++j) sums[j] += x[i + j] * x[i + j];
  }
  double total = 0;
  for (const float sum : sums) total += sum;
  for (; i < size; ++i) total += x[i] * x[i];
  const auto mean = static_cast<float>(total / static_cast<double>(size));
  const float scale = 1 / std::sqrt(mean + epsilon);
  for (i = 0; i < size; ++i) out[i] = weight[i] * (x[i] * scale);
}

void Resize(const ModelConfig& config, std::int64_t rows, Activations& a) {
  const auto size = [rows](int width, int times = 1) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width) *
           static_cast<std::size_t>(times);
  };
  a.rows = rows;
  a.x.resize(size(config.hidden));
  a.normed.resize(size(config.hidden));
  a.qkv.resize(size(config.head_dim, config.q_heads + 2 * config.kv_heads));
  a.attended.resize(size(config.head_dim, config.q_heads));
  a.gate_up.resize(size(config.intermediate, 2));
  a.swiglu.resize(size(config.intermediate));
  a.cos.resize(size(config.head_dim / 2));
  a.sin.resize(size(config.head_dim / 2));
}

void Add(const std::vector<float>& from, std::size_t size, std::vector<float>& to) {
  for (std::size_t i = 0; i < size; ++i) to[i] += from[i];
}

}  // namespace

absl::StatusOr<Transformer> Transformer::Create(const WeightFiles& files, ComputeType compute) {
  Transformer model(files.config());
  const ModelConfig& config = model.config_;
  KVF_ASSIGN_OR_RETURN(auto embedding,
                       files.Read("model.embed_tokens.weight", {config.vocabulary, config.hidden}));
  model.embedding_ = Linear({std::move(embedding)}, config.hidden, {}, compute);
  if (!config.tied_embeddings) {
    KVF_ASSIGN_OR_RETURN(auto head,
                         files.Read("lm_head.weight", {config.vocabulary, config.hidden}));
    model.head_ = Linear({std::move(head)}, config.hidden, {}, compute);
  }
  KVF_ASSIGN_OR_RETURN(model.final_norm_, files.Read("model.norm.weight", {config.hidden}));
  for (int i = 0; i < config.layers; ++i) {
    KVF_ASSIGN_OR_RETURN(auto layer, model.LoadLayer(files, i, compute));
    model.layers_.push_back(std::move(layer));
  }
  return model;
}

absl::StatusOr<Transformer::Layer> Transformer::LoadLayer(const WeightFiles& files, int index,
                                                          ComputeType compute) const {
  const auto read = [&](const char* name, const std::vector<std::int64_t>& shape) {
    return files.Read(absl::StrCat("model.layers.", index, ".", name), shape);
  };
  const int hidden = config_.hidden;
  const int q_size = config_.q_heads * config_.head_dim;
  const int kv_size = config_.kv_heads * config_.head_dim;
  Layer layer;
  KVF_ASSIGN_OR_RETURN(layer.attention_norm, read("input_layernorm.weight", {hidden}));
  KVF_ASSIGN_OR_RETURN(layer.mlp_norm, read("post_attention_layernorm.weight", {hidden}));
  if (config_.qk_norm) {
    KVF_ASSIGN_OR_RETURN(layer.q_norm, read("self_attn.q_norm.weight", {config_.head_dim}));
    KVF_ASSIGN_OR_RETURN(layer.k_norm, read("self_attn.k_norm.weight", {config_.head_dim}));
  }
  KVF_ASSIGN_OR_RETURN(auto q, read("self_attn.q_proj.weight", {q_size, hidden}));
  KVF_ASSIGN_OR_RETURN(auto k, read("self_attn.k_proj.weight", {kv_size, hidden}));
  KVF_ASSIGN_OR_RETURN(auto v, read("self_attn.v_proj.weight", {kv_size, hidden}));
  std::vector<float> bias;
  if (config_.attention_bias) {
    KVF_ASSIGN_OR_RETURN(bias, read("self_attn.q_proj.bias", {q_size}));
    KVF_ASSIGN_OR_RETURN(const auto k_bias, read("self_attn.k_proj.bias", {kv_size}));
    KVF_ASSIGN_OR_RETURN(const auto v_bias, read("self_attn.v_proj.bias", {kv_size}));
    bias.insert(bias.end(), k_bias.begin(), k_bias.end());
    bias.insert(bias.end(), v_bias.begin(), v_bias.end());
  }
  layer.qkv = Linear({std::move(q), std::move(k), std::move(v)}, hidden, std::move(bias), compute);

  KVF_ASSIGN_OR_RETURN(auto output, read("self_attn.o_proj.weight", {hidden, q_size}));
  layer.output = Linear({std::move(output)}, q_size, {}, compute);
  KVF_ASSIGN_OR_RETURN(auto gate, read("mlp.gate_proj.weight", {config_.intermediate, hidden}));
  KVF_ASSIGN_OR_RETURN(auto up, read("mlp.up_proj.weight", {config_.intermediate, hidden}));
  layer.gate_up = Linear({std::move(gate), std::move(up)}, hidden, {}, compute);
  KVF_ASSIGN_OR_RETURN(auto down, read("mlp.down_proj.weight", {hidden, config_.intermediate}));
  layer.down = Linear({std::move(down)}, config_.intermediate, {}, compute);
  return layer;
}

absl::Status Transformer::Begin(std::span<const std::int32_t> tokens,
                                std::span<const std::int32_t> positions, Activations& a) const {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    KVF_RETURN_IF_ERROR(CheckToken(config_, i, tokens[i], positions[i]));
  }
  Resize(config_, static_cast<std::int64_t>(tokens.size()), a);
  const std::int64_t half = config_.head_dim / 2;
  EachRow(a.rows, [&](std::int64_t row) {
    embedding_.Row(tokens[row], a.x.data() + row * config_.hidden);
    rope_.Angles(positions[row], a.cos.data() + row * half, a.sin.data() + row * half);
  });
  return absl::OkStatus();
}

void Transformer::ProjectQkv(int index, Activations& a) const {
  const Layer& layer = layers_[index];
  EachRow(a.rows, [&](std::int64_t row) {
    RmsNorm(a.x.data() + row * config_.hidden, layer.attention_norm, config_.rms_epsilon,
            a.normed.data() + row * config_.hidden);
  });
  layer.qkv.Apply(a.normed.data(), a.rows, a.qkv.data());

  const int rotated = config_.q_heads + config_.kv_heads;
  const std::int64_t half = config_.head_dim / 2;
  EachRow(a.rows, [&](std::int64_t row) {
    float* head = a.qkv.data() + row * layer.qkv.outputs();
    for (int h = 0; h < rotated; ++h, head += config_.head_dim) {
      if (config_.qk_norm) {
        RmsNorm(head, h < config_.q_heads ? layer.q_norm : layer.k_norm, config_.rms_epsilon, head);
      }
      rope_.Rotate(a.cos.data() + row * half, a.sin.data() + row * half, head);
    }
  });
}

void Transformer::FinishLayer(int index, Activations& a) const {
  const Layer& layer = layers_[index];
  const std::size_t size = static_cast<std::size_t>(a.rows * config_.hidden);
  layer.output.Apply(a.attended.data(), a.rows, a.normed.data());
  Add(a.normed, size, a.x);

  EachRow(a.rows, [&](std::int64_t row) {
    RmsNorm(a.x.data() + row * config_.hidden, layer.mlp_norm, config_.rms_epsilon,
            a.normed.data() + row * config_.hidden);
  });
  layer.gate_up.Apply(a.normed.data(), a.rows, a.gate_up.data());
  const std::int64_t width = config_.intermediate;
  const at::Tensor gate_up = at::from_blob(a.gate_up.data(), {a.rows, 2, width}, at::kFloat);
  at::Tensor swiglu = at::from_blob(a.swiglu.data(), {a.rows, width}, at::kFloat);
  at::silu_out(swiglu, gate_up.select(1, 0));
  swiglu.mul_(gate_up.select(1, 1));
  layer.down.Apply(a.swiglu.data(), a.rows, a.normed.data());
  Add(a.normed, size, a.x);
}

void Transformer::Logits(Activations& a, std::int64_t first, float* logits) const {
  for (std::int64_t row = first; row < a.rows; ++row) {
    RmsNorm(a.x.data() + row * config_.hidden, final_norm_, config_.rms_epsilon,
            a.normed.data() + row * config_.hidden);
  }
  head().Apply(a.normed.data() + first * config_.hidden, a.rows - first, logits);
}

}  // namespace kvferry::model
