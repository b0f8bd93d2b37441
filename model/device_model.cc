#include "model/device_model.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/device_prefill_session.h"
#include "model/device_steps.h"
#include "model/device_transformer.h"
#include "model/run_checks.h"
#include "model/torch_device.h"
#include "model/torch_status.h"

namespace kvferry::model {
namespace {

class DeviceModel : public Model {
 public:
  DeviceModel(DeviceTransformer transformer, TorchDevice device, std::uint64_t weights_hash)
      : transformer_(std::move(transformer)), device_(device), weights_hash_(weights_hash) {}

  const ModelConfig& config() const override { return transformer_.config(); }
  std::uint64_t weights_hash() const override { return weights_hash_; }

  absl::StatusOr<std::unique_ptr<PrefillSession>> StartPrefill(int max_tokens,
                                                               codec::Raw16 type) override {
    return DevicePrefillSession::Create(transformer_, device_, max_tokens, type);
  }

  absl::StatusOr<std::unique_ptr<DeviceSteps>> StartDeviceSteps(
      int max_sequences, DeviceDecodeAttention& attention) override {
    return StartSteps(transformer_, device_, max_sequences, attention);
  }

  absl::Status DecodeStep(std::span<const std::int32_t> tokens,
                          std::span<const std::int32_t> positions, DecodeAttention& attention,
                          std::span<float> logits) override {
    KVF_RETURN_IF_ERROR(CheckDecodeStep(config(), tokens.size(), positions.size(), logits.size()));
    KVF_RETURN_IF_ERROR(transformer_.Check(tokens, positions));
    return CatchTorch("decode step", [&]() -> absl::Status {
      const c10::InferenceMode guard;
      const TorchDevice::Scope scope(device_);
      DeviceTransformer::Rows rows = transformer_.Begin(tokens, positions);
      for (int layer = 0; layer < config().layers; ++layer) {
        KVF_ASSIGN_OR_RETURN(
            const at::Tensor attended,
            AttendOnHost(layer, transformer_.ProjectQkv(layer, rows, transformer_.type()),
                         attention));
        transformer_.FinishLayer(layer, attended, rows);
      }
      const at::Tensor all = transformer_.Logits(rows).cpu();
      std::memcpy(logits.data(), all.const_data_ptr<float>(), logits.size_bytes());
      return absl::OkStatus();
    });
  }

 private:
  // The cache is in host memory: q, k and v go there and the output comes back.
  absl::StatusOr<at::Tensor> AttendOnHost(int layer, const DeviceTransformer::Qkv& qkv,
                                          DecodeAttention& attention) const {
    const at::ScalarType raw =
        attention.raw_type() == codec::Raw16::kBf16 ? at::kBFloat16 : at::kHalf;
    const auto host = [](const at::Tensor& tensor, at::ScalarType type) {
      return tensor.to(at::kCPU, type).contiguous();
    };
    const at::Tensor q = host(qkv.q, at::kFloat), k = host(qkv.k, raw), v = host(qkv.v, raw);
    at::Tensor out = at::empty(q.sizes(), at::kFloat);
    KVF_RETURN_IF_ERROR(attention.AppendAndAttend(
        layer, q.const_data_ptr<float>(), static_cast<const std::uint16_t*>(k.const_data_ptr()),
        static_cast<const std::uint16_t*>(v.const_data_ptr()), out.mutable_data_ptr<float>()));
    return out.to(transformer_.device(), transformer_.type());
  }

  DeviceTransformer transformer_;
  TorchDevice device_;
  const std::uint64_t weights_hash_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadDeviceModel(const WeightFiles& files,
                                                       const LoadOptions& options) {
  KVF_ASSIGN_OR_RETURN(const TorchDevice device, TorchDevice::Open(options.device, options.stream));
  std::unique_ptr<Model> model;
  KVF_RETURN_IF_ERROR(
      CatchTorch(absl::StrCat("loading ", options.path).c_str(), [&]() -> absl::Status {
        const c10::InferenceMode guard;
        const TorchDevice::Scope scope(device);
        KVF_ASSIGN_OR_RETURN(auto transformer,
                             DeviceTransformer::Create(files, device.device(), options.compute));
        model = std::make_unique<DeviceModel>(std::move(transformer), device, files.Hash());
        return absl::OkStatus();
      }));
  return model;
}

}  // namespace kvferry::model
