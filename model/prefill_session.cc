#include "model/prefill_session.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/triu.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "common/status_macros.h"
#include "model/run_checks.h"
#include "model/torch_status.h"

namespace kvferry::model {
namespace {

// What each new token may look at: all of `past` and the new ones up to itself. Undefined without a
// past: the kernel's own causal order does.
at::Tensor CausalMask(std::int64_t rows, std::int64_t past, at::ScalarType type) {
  if (past == 0 || rows == 1) return {};
  return at::full({rows, past + rows}, -std::numeric_limits<float>::infinity(), type)
      .triu(past + 1);
}

}  // namespace

TorchPrefillSession::TorchPrefillSession(const Transformer& transformer, int max_tokens,
                                         PromptCache cache)
    : transformer_(transformer),
      max_tokens_(max_tokens),
      cache_(std::move(cache)),
      logits_(static_cast<std::size_t>(transformer.config().vocabulary)) {}

absl::StatusOr<std::unique_ptr<TorchPrefillSession>> TorchPrefillSession::Create(
    const Transformer& transformer, ComputeType compute, int max_tokens, codec::Raw16 type) {
  KVF_RETURN_IF_ERROR(CheckPromptTokens(transformer.config(), max_tokens));
  std::unique_ptr<TorchPrefillSession> session;
  KVF_RETURN_IF_ERROR(CatchTorch("allocating the K and V of a prompt", [&] {
    const c10::InferenceMode guard;
    const at::ScalarType own_type = compute == ComputeType::kBf16 ? at::kBFloat16 : at::kFloat;
    session.reset(new TorchPrefillSession(
        transformer, max_tokens,
        PromptCache(transformer.config(), max_tokens, own_type, type, at::kCPU)));
    return absl::OkStatus();
  }));
  return session;
}

absl::Status TorchPrefillSession::Run(std::span<const std::int32_t> tokens,
                                      const OnLayer& on_layer) {
  return RunTokens(tokens, on_layer, logits_);
}

absl::Status TorchPrefillSession::Score(std::span<const std::int32_t> tokens,
                                        std::span<float> logits) {
  KVF_RETURN_IF_ERROR(CheckLogitsRoom(transformer_.config(), tokens.size(), logits.size()));
  KVF_RETURN_IF_ERROR(RunTokens(
      tokens, [](int, const codec::KvView&) { return absl::OkStatus(); }, logits));
  const std::span<const float> last = logits.last(logits_.size());
  std::copy(last.begin(), last.end(), logits_.begin());
  return absl::OkStatus();
}

absl::Status TorchPrefillSession::Rewind(int tokens) {
  KVF_RETURN_IF_ERROR(CheckRewind(tokens, tokens_));
  tokens_ = tokens;
  return absl::OkStatus();
}

absl::Status TorchPrefillSession::RunTokens(std::span<const std::int32_t> tokens,
                                            const OnLayer& on_layer, std::span<float> logits) {
  KVF_RETURN_IF_ERROR(CheckPromptChunk(tokens.size(), tokens_, max_tokens_));
  return CatchTorch("prefill", [&]() -> absl::Status {
    const c10::InferenceMode guard;
    std::vector<std::int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), tokens_);
    KVF_RETURN_IF_ERROR(transformer_.Begin(tokens, positions, activations_));
    const std::size_t rows = logits.size() / logits_.size();
    KVF_RETURN_IF_ERROR(RunLayers(tokens_, static_cast<std::int64_t>(rows), on_layer));
    tokens_ += static_cast<int>(tokens.size());
    if (rows > 0) transformer_.Logits(activations_, 0, logits.data());
    return absl::OkStatus();
  });
}

absl::Status TorchPrefillSession::RunLayers(std::int64_t past, std::int64_t rows,
                                            const OnLayer& on_layer) {
  Activations& a = activations_;
  const std::int64_t tokens = past + a.rows;
  const int layers = transformer_.config().layers;
  const at::Tensor mask = CausalMask(a.rows, past, cache_.k(0).scalar_type());
  for (int layer = 0; layer < layers; ++layer) {
    transformer_.ProjectQkv(layer, a);
    StoreKv(layer, past);
    KVF_RETURN_IF_ERROR(on_layer(layer, cache_.View(layer, tokens)));
    if (layer + 1 == layers && rows == 0) break;
    if (layer + 1 == layers && rows == 1) {  // nothing else is wanted of the other rows
      KeepLastRow();
      Attend(layer, tokens - 1, {});
    } else {
      Attend(layer, past, mask);
    }
    transformer_.FinishLayer(layer, a);
  }
  return absl::OkStatus();
}

void TorchPrefillSession::StoreKv(int layer, std::int64_t past) {
  const ModelConfig& config = transformer_.config();
  const at::Tensor heads =
      at::from_blob(activations_.qkv.data(),
                    {activations_.rows, config.q_heads + 2 * config.kv_heads, config.head_dim},
                    at::kFloat)
          .permute({1, 0, 2});
  cache_.Store(layer, past, heads.narrow(0, config.q_heads, config.kv_heads),
               heads.narrow(0, config.q_heads + config.kv_heads, config.kv_heads));
}

// The query heads of one KV head are the kernel's heads, KV heads its batch, so that K and V are
// read in place.
void TorchPrefillSession::Attend(int layer, std::int64_t past, const at::Tensor& mask) {
  const ModelConfig& config = transformer_.config();
  Activations& a = activations_;
  const std::int64_t group = config.q_heads / config.kv_heads;
  const at::Tensor q =
      at::from_blob(a.qkv.data(), {a.rows, config.q_heads + 2 * config.kv_heads, config.head_dim},
                    at::kFloat)
          .narrow(1, 0, config.q_heads)
          .to(cache_.k(layer).scalar_type())
          .view({a.rows, config.kv_heads, group, config.head_dim})
          .permute({1, 2, 0, 3});
  const auto all = [&](const at::Tensor& kv) {
    return kv.narrow(1, 0, past + a.rows)
        .unsqueeze(1)
        .expand({config.kv_heads, group, past + a.rows, config.head_dim});
  };
  const bool causal = past == 0 && a.rows > 1;
  const double scale = 1 / std::sqrt(static_cast<double>(config.head_dim));
  const at::Tensor out = std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
      q, all(cache_.k(layer)), all(cache_.v(layer)), /*dropout_p=*/0, causal,
      mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt, scale));
  at::from_blob(a.attended.data(), {a.rows, config.kv_heads, group, config.head_dim}, at::kFloat)
      .copy_(out.permute({2, 0, 1, 3}));
}

void TorchPrefillSession::KeepLastRow() {
  Activations& a = activations_;
  const auto keep = [&a](std::vector<float>& rows) {
    const auto width = static_cast<std::ptrdiff_t>(rows.size()) / a.rows;
    std::copy(rows.end() - width, rows.end(), rows.begin());
  };
  keep(a.x);
  keep(a.qkv);
  a.rows = 1;
}

}  // namespace kvferry::model
