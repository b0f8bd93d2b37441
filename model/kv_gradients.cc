#include "model/kv_gradients.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/device_transformer.h"
#include "model/rope.h"
#include "model/torch_status.h"
#include "model/weight_files.h"

namespace kvferry::model {
namespace {

// Tokens whose logits, and gradients by them, are in memory at once.
constexpr std::int64_t kLogitsTokens = 256;

// Causal, exact. [tokens, q_heads, head_dim]
at::Tensor Attend(const DeviceTransformer::Qkv& qkv) {
  const std::int64_t tokens = qkv.q.size(0), q_heads = qkv.q.size(1), head_dim = qkv.q.size(2);
  const std::int64_t kv_heads = qkv.k.size(1);
  // Each key and value head for the query heads that share it: [1, q_heads, tokens, head_dim].
  const auto shared = [&](const at::Tensor& heads) {
    return heads.transpose(0, 1)
        .unsqueeze(1)
        .expand({kv_heads, q_heads / kv_heads, tokens, head_dim})
        .reshape({1, q_heads, tokens, head_dim});
  };
  return at::scaled_dot_product_attention(qkv.q.transpose(0, 1).unsqueeze(0), shared(qkv.k),
                                          shared(qkv.v), {}, /*dropout_p=*/0.0,
                                          /*is_causal=*/true)
      .squeeze(0)
      .transpose(0, 1);
}

// Of the loss, by the residual stream after the last layer. x: [tokens, hidden].
at::Tensor LossGradient(const DeviceTransformer& transformer, const at::Tensor& x,
                        std::span<const std::int32_t> tokens) {
  std::vector<std::int64_t> next(tokens.begin() + 1, tokens.end());
  const auto count = static_cast<std::int64_t>(next.size());
  const at::Tensor targets = at::from_blob(next.data(), {count}, at::kLong);
  std::vector<at::Tensor> parts;
  for (std::int64_t at = 0; at < count; at += kLogitsTokens) {
    const std::int64_t size = std::min(kLogitsTokens, count - at);
    const at::Tensor part = x.narrow(0, at, size).detach().requires_grad_();
    const at::Tensor loss = at::cross_entropy_loss(
        transformer.Logits({.x = part}), targets.narrow(0, at, size), {}, at::Reduction::Sum);
    parts.push_back(torch::autograd::grad({loss}, {part}).front());
  }
  parts.push_back(at::zeros({1, x.size(1)}, x.options()));
  return at::cat(parts);
}

class TorchKvGradients : public KvGradients {
 public:
  TorchKvGradients(DeviceTransformer transformer, std::uint64_t weights_hash)
      : transformer_(std::move(transformer)), weights_hash_(weights_hash) {}

  const ModelConfig& config() const override { return transformer_.config(); }
  std::uint64_t weights_hash() const override { return weights_hash_; }
  std::vector<float> rope_frequencies() const override {
    const Rope rope(config());
    return {rope.frequencies().begin(), rope.frequencies().end()};
  }

  absl::Status Run(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override {
    if (tokens.size() < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("gradients: ", tokens.size(), " tokens, must be two or more"));
    }
    std::vector<std::int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), 0);
    KVF_RETURN_IF_ERROR(transformer_.Check(tokens, positions));
    return CatchTorch("gradients of keys and values", [&]() -> absl::Status {
      std::vector<at::Tensor> inputs;  // [layers] of [tokens, hidden]
      DeviceTransformer::Rows rows = RunForward(tokens, positions, inputs);
      const at::AutoGradMode guard(true);
      at::Tensor gradient = LossGradient(transformer_, rows.x, tokens);
      for (int layer = config().layers - 1; layer >= 0; --layer) {
        const at::Tensor x = inputs[layer].detach().requires_grad_();
        rows.x = x;
        const DeviceTransformer::Qkv qkv =
            transformer_.ProjectQkv(layer, rows, transformer_.type());
        transformer_.FinishLayer(layer, Attend(qkv), rows);
        const std::vector<at::Tensor> by =
            torch::autograd::grad({rows.x}, {x, qkv.k, qkv.v}, {gradient});
        gradient = by[0];
        inputs.pop_back();
        KVF_RETURN_IF_ERROR(Hand(layer, {qkv.k, qkv.v, by[1], by[2]}, on_layer));
      }
      return absl::OkStatus();
    });
  }

 private:
  // Without a graph. inputs: of each layer.
  DeviceTransformer::Rows RunForward(std::span<const std::int32_t> tokens,
                                     std::span<const std::int32_t> positions,
                                     std::vector<at::Tensor>& inputs) const {
    const at::NoGradGuard guard;
    DeviceTransformer::Rows rows = transformer_.Begin(tokens, positions);
    for (int layer = 0; layer < config().layers; ++layer) {
      inputs.push_back(rows.x);
      transformer_.FinishLayer(
          layer, Attend(transformer_.ProjectQkv(layer, rows, transformer_.type())), rows);
    }
    return rows;
  }

  // tensors: k, v, and the gradients by them.
  static absl::Status Hand(int layer, std::vector<at::Tensor> tensors, const OnLayer& on_layer) {
    for (at::Tensor& tensor : tensors) tensor = tensor.detach().contiguous();
    const auto values = [&](std::size_t i) {
      return std::span(tensors[i].const_data_ptr<float>(),
                       static_cast<std::size_t>(tensors[i].numel()));
    };
    return on_layer(
        layer, {.k = values(0), .v = values(1), .k_gradient = values(2), .v_gradient = values(3)});
  }

  DeviceTransformer transformer_;
  const std::uint64_t weights_hash_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<KvGradients>> KvGradients::Load(const std::string& path,
                                                               int threads) {
  if (threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", threads, ", allowed are 0 (all cores) and more"));
  }
  KVF_ASSIGN_OR_RETURN(const WeightFiles files, WeightFiles::Open(path));
  std::unique_ptr<KvGradients> gradients;
  KVF_RETURN_IF_ERROR(CatchTorch(absl::StrCat("loading ", path).c_str(), [&]() -> absl::Status {
    // No InferenceMode: its tensors cannot be part of a graph.
    const at::NoGradGuard guard;
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    at::set_num_threads(threads > 0 ? threads : cores);
    KVF_ASSIGN_OR_RETURN(auto transformer,
                         DeviceTransformer::Create(files, at::kCPU, ComputeType::kFp32));
    gradients = std::make_unique<TorchKvGradients>(std::move(transformer), files.Hash());
    return absl::OkStatus();
  }));
  return gradients;
}

}  // namespace kvferry::model
