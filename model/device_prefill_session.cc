#include "model/device_prefill_session.h"

#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
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
  KVF_RETURN_IF_ERROR(CheckPromptTokens(transformer.config(), max_tokens));
  std::unique_ptr<DevicePrefillSession> session;
  KVF_RETURN_IF_ERROR(CatchTorch("allocating the K and V of a prompt", [&] {
    const c10::InferenceMode guard;
    const TorchDevice::Scope scope(device);
    session.reset(
        new DevicePrefillSession(transformer, device, max_tokens,
                                 PromptCache(transformer.config(), max_tokens, transformer.type(),
                                             type, transformer.device())));
    return absl::OkStatus();
  }));
  return session;
}

absl::Status DevicePrefillSession::Run(std::span<const std::int32_t> tokens,
                                       const OnLayer& on_layer) {
  return RunTokens(tokens, on_layer, logits_);
}

absl::Status DevicePrefillSession::RunAhead(std::span<const std::int32_t> tokens,
                                            const OnLayer& on_layer) {
  KVF_RETURN_IF_ERROR(RunTokens(tokens, on_layer, {}));
  return CatchTorch("prefill", [&] {
    const TorchDevice::Scope scope(device_);
    AwaitChunkBefore();
    return absl::OkStatus();
  });
}

void DevicePrefillSession::AwaitChunkBefore() {
  const at::Device device = transformer_.device();
  if (device.is_cpu()) return;
  c10::Event now(device.type());
  now.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  if (ahead_.has_value()) ahead_->synchronize();
  ahead_ = std::move(now);
}

absl::Status DevicePrefillSession::Score(std::span<const std::int32_t> tokens,
                                         std::span<float> logits) {
  KVF_RETURN_IF_ERROR(CheckLogitsRoom(transformer_.config(), tokens.size(), logits.size()));
  KVF_RETURN_IF_ERROR(RunTokens(
      tokens, [](int, const codec::KvView&) { return absl::OkStatus(); }, logits));
  const std::span<const float> last = logits.last(logits_.size());
  std::copy(last.begin(), last.end(), logits_.begin());
  return absl::OkStatus();
}

absl::Status DevicePrefillSession::Rewind(int tokens) {
  KVF_RETURN_IF_ERROR(CheckRewind(tokens, tokens_));
  tokens_ = tokens;
  return absl::OkStatus();
}

absl::Status DevicePrefillSession::RunTokens(std::span<const std::int32_t> tokens,
                                             const OnLayer& on_layer, std::span<float> logits) {
  KVF_RETURN_IF_ERROR(CheckPromptChunk(tokens.size(), tokens_, max_tokens_));
  std::vector<std::int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(tokens_));
  KVF_RETURN_IF_ERROR(transformer_.Check(tokens, positions));
  return CatchTorch("prefill", [&]() -> absl::Status {
    const c10::InferenceMode guard;
    const TorchDevice::Scope scope(device_);
    return RunLayers(transformer_.Begin(tokens, positions), on_layer, logits);
  });
}

absl::Status DevicePrefillSession::RunLayers(DeviceTransformer::Rows rows, const OnLayer& on_layer,
                                             std::span<float> logits) {
  const std::int64_t count = rows.x.size(0), tokens = tokens_ + count;
  const std::size_t wanted = logits.size() / logits_.size();  // rows
  const int layers = transformer_.config().layers;
  for (int layer = 0; layer < layers; ++layer) {
    DeviceTransformer::Qkv qkv = transformer_.ProjectQkv(layer, rows, transformer_.type());
    cache_.Store(layer, tokens_, qkv.k.transpose(0, 1), qkv.v.transpose(0, 1));
    KVF_RETURN_IF_ERROR(on_layer(layer, cache_.View(layer, tokens)));
    if (layer + 1 == layers && wanted == 0) break;
    if (layer + 1 == layers && wanted == 1) {  // nothing else is wanted of the other rows
      qkv.q = qkv.q.narrow(0, count - 1, 1);
      rows.x = rows.x.narrow(0, count - 1, 1);
    }
    transformer_.FinishLayer(layer, Attend(layer, qkv.q, tokens), rows);
  }
  tokens_ = tokens;
  if (wanted == 0) return absl::OkStatus();
  const at::Tensor on_host = transformer_.Logits(rows).cpu();  // waits for the stream
  std::copy_n(on_host.const_data_ptr<float>(), logits.size(), logits.begin());
  return absl::OkStatus();
}

at::Tensor DevicePrefillSession::Attend(int layer, const at::Tensor& q, std::int64_t tokens) const {
  const std::int64_t rows = q.size(0);
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(2)));
  const at::Tensor k = cache_.k(layer).narrow(1, 0, tokens),
                   v = cache_.v(layer).narrow(1, 0, tokens);
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
