#include "model/model.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/device_model.h"
#include "model/prefill_session.h"
#include "model/run_checks.h"
#include "model/torch_status.h"
#include "model/transformer.h"
#include "model/weight_files.h"

namespace kvferry::model {
namespace {

void ToRaw16(const float* from, std::size_t count, codec::Raw16 type, std::uint16_t* to) {
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = type == codec::Raw16::kBf16 ? c10::detail::round_to_nearest_even(from[i])
                                        : c10::detail::fp16_ieee_from_fp32_value(from[i]);
  }
}

class TorchModel : public Model {
 public:
  TorchModel(Transformer transformer, ComputeType compute, std::uint64_t weights_hash)
      : transformer_(std::move(transformer)), compute_(compute), weights_hash_(weights_hash) {}

  const ModelConfig& config() const override { return transformer_.config(); }
  std::uint64_t weights_hash() const override { return weights_hash_; }

  absl::StatusOr<std::unique_ptr<PrefillSession>> StartPrefill(int max_tokens,
                                                               codec::Raw16 type) override {
    return TorchPrefillSession::Create(transformer_, compute_, max_tokens, type);
  }

  absl::Status DecodeStep(std::span<const std::int32_t> tokens,
                          std::span<const std::int32_t> positions, DecodeAttention& attention,
                          std::span<float> logits) override {
    KVF_RETURN_IF_ERROR(CheckDecodeStep(config(), tokens.size(), positions.size(), logits.size()));
    return CatchTorch("decode step", [&]() -> absl::Status {
      const c10::InferenceMode guard;
      KVF_RETURN_IF_ERROR(transformer_.Begin(tokens, positions, activations_));
      for (int layer = 0; layer < config().layers; ++layer) {
        transformer_.ProjectQkv(layer, activations_);
        SplitQkv(attention.raw_type());
        KVF_RETURN_IF_ERROR(attention.AppendAndAttend(layer, q_.data(), k_.data(), v_.data(),
                                                      activations_.attended.data()));
        transformer_.FinishLayer(layer, activations_);
      }
      transformer_.Logits(activations_, 0, logits.data());
      return absl::OkStatus();
    });
  }

 private:
  // Rows of fused qkv -> one run each of q, k and v.
  void SplitQkv(codec::Raw16 type) {
    const auto head_dim = static_cast<std::size_t>(config().head_dim);
    const std::size_t q_size = config().q_heads * head_dim, kv_size = config().kv_heads * head_dim;
    const auto rows = static_cast<std::size_t>(activations_.rows);
    q_.resize(rows * q_size);
    k_.resize(rows * kv_size);
    v_.resize(rows * kv_size);
    for (std::size_t row = 0; row < rows; ++row) {
      const float* qkv = activations_.qkv.data() + row * (q_size + 2 * kv_size);
      std::copy_n(qkv, q_size, q_.data() + row * q_size);
      ToRaw16(qkv + q_size, kv_size, type, k_.data() + row * kv_size);
      ToRaw16(qkv + q_size + kv_size, kv_size, type, v_.data() + row * kv_size);
    }
  }

  Transformer transformer_;
  const ComputeType compute_;
  const std::uint64_t weights_hash_;
  Activations activations_;           // of decode steps
  std::vector<float> q_;              // [sequences, q_heads, head_dim]
  std::vector<std::uint16_t> k_, v_;  // [sequences, kv_heads, head_dim]
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const LoadOptions& options) {
  if (options.threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", options.threads, ", allowed are 0 (all cores) and more"));
  }
  KVF_ASSIGN_OR_RETURN(const WeightFiles files, options.random_weights
                                                    ? WeightFiles::Random(options.path)
                                                    : WeightFiles::Open(options.path));
  if (options.device != "cpu") return LoadDeviceModel(files, options);
  std::unique_ptr<Model> model;
  KVF_RETURN_IF_ERROR(
      CatchTorch(absl::StrCat("loading ", options.path).c_str(), [&]() -> absl::Status {
        const c10::InferenceMode guard;
        const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
        at::set_num_threads(options.threads > 0 ? options.threads : cores);
        KVF_ASSIGN_OR_RETURN(auto transformer, Transformer::Create(files, options.compute));
        model = std::make_unique<TorchModel>(std::move(transformer), options.compute, files.Hash());
        return absl::OkStatus();
      }));
  return model;
}

}  // namespace kvferry::model
