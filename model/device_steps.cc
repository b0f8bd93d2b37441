#include "model/device_steps.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/run_checks.h"
#include "model/torch_status.h"

namespace kvferry::model {
namespace {

at::ScalarType TorchType(codec::Raw16 type) {
  return type == codec::Raw16::kBf16 ? at::kBFloat16 : at::kHalf;
}

// Inputs and logits have their memory from the start: LibTorch gives what a step needs in between
// the same places whenever a step of as many sequences runs, since nothing else that it allocates
// lives from one step to the next.
class TorchDeviceSteps final : public DeviceSteps {
 public:
  TorchDeviceSteps(const DeviceTransformer& transformer, const TorchDevice& device,
                   DeviceDecodeAttention& attention)
      : transformer_(transformer), device_(device), attention_(attention) {}

  void Allocate(int max_sequences) {
    const at::TensorOptions ints(at::kInt);
    inputs_host_ =
        at::empty({2, max_sequences}, ints.pinned_memory(!transformer_.device().is_cpu()));
    inputs_host_.zero_();
    inputs_ = at::empty({2, max_sequences}, ints.device(transformer_.device()));
    logits_ = at::empty({max_sequences, transformer_.config().vocabulary},
                        inputs_.options().dtype(at::kFloat));
  }

  absl::Status SetInputs(std::span<const std::int32_t> tokens,
                         std::span<const std::int32_t> positions) override {
    if (static_cast<std::int64_t>(tokens.size()) > inputs_.size(1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a step of ", tokens.size(), " sequences; the most is ", inputs_.size(1)));
    }
    KVF_RETURN_IF_ERROR(CheckDecodeStep(transformer_.config(), tokens.size(), positions.size(),
                                        tokens.size() * transformer_.config().vocabulary));
    KVF_RETURN_IF_ERROR(transformer_.Check(tokens, positions));
    return Run("inputs of a decode step", [&] {
      sequences_ = static_cast<std::int64_t>(tokens.size());
      auto* const host = inputs_host_.mutable_data_ptr<std::int32_t>();
      std::copy(tokens.begin(), tokens.end(), host);
      std::copy(positions.begin(), positions.end(), host + inputs_.size(1));
      inputs_.copy_(inputs_host_, true);
      return absl::OkStatus();
    });
  }

  absl::Status Enqueue() override {
    return Run("decode step", [&]() -> absl::Status {
      DeviceTransformer::Rows rows = transformer_.Begin(inputs_[0].narrow(0, 0, sequences_),
                                                        inputs_[1].narrow(0, 0, sequences_));
      for (int layer = 0; layer < transformer_.config().layers; ++layer) {
        KVF_ASSIGN_OR_RETURN(
            const at::Tensor attended,
            Attend(layer, transformer_.ProjectQkv(layer, rows, TorchType(attention_.raw_type()))));
        transformer_.FinishLayer(layer, attended, rows);
      }
      logits_.narrow(0, 0, sequences_).copy_(transformer_.Logits(rows));
      return absl::OkStatus();
    });
  }

  absl::Status FetchLogits(std::span<float> logits) override {
    const std::size_t expected = sequences_ * transformer_.config().vocabulary;
    if (logits.size() != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat(logits.size(), " logits are asked for, there are ", expected));
    }
    return Run("logits of a decode step", [&] {
      at::from_blob(logits.data(), {sequences_, transformer_.config().vocabulary}, at::kFloat)
          .copy_(logits_.narrow(0, 0, sequences_));
      return absl::OkStatus();
    });
  }

  // The allocator gives memory back when it finds none, and then only.
  std::uint64_t memory_epoch() const override {
    if (transformer_.device().is_cpu()) return 0;
    const auto stats =
        c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(transformer_.device().index());
    return static_cast<std::uint64_t>(stats.num_alloc_retries) +
           static_cast<std::uint64_t>(stats.num_device_free);
  }

 private:
  template <typename Work>
  absl::Status Run(const char* operation, Work work) const {
    return CatchTorch(operation, [&]() -> absl::Status {
      const c10::InferenceMode guard;
      const TorchDevice::Scope scope(device_);
      return work();
    });
  }

  absl::StatusOr<at::Tensor> Attend(int layer, const DeviceTransformer::Qkv& qkv) const {
    const at::Tensor q = qkv.q.contiguous(), k = qkv.k.contiguous(), v = qkv.v.contiguous();
    at::Tensor out = at::empty(q.sizes(), q.options());
    const auto data = [](const at::Tensor& tensor) {
      return static_cast<const std::uint16_t*>(tensor.const_data_ptr());
    };
    KVF_RETURN_IF_ERROR(attention_.AppendAndAttend(
        layer, data(q), data(k), data(v), static_cast<std::uint16_t*>(out.mutable_data_ptr())));
    return out.to(transformer_.type());
  }

  const DeviceTransformer& transformer_;
  const TorchDevice& device_;
  DeviceDecodeAttention& attention_;
  at::Tensor inputs_;           // [2, max_sequences]: tokens, positions
  at::Tensor inputs_host_;      // the same, page-locked: read by the GPU until FetchLogits
  at::Tensor logits_;           // [max_sequences, vocabulary] fp32
  std::int64_t sequences_ = 0;  // of the step
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSteps>> StartSteps(const DeviceTransformer& transformer,
                                                        const TorchDevice& device,
                                                        int max_sequences,
                                                        DeviceDecodeAttention& attention) {
  auto steps = std::make_unique<TorchDeviceSteps>(transformer, device, attention);
  KVF_RETURN_IF_ERROR(CatchTorch("memory of decode steps", [&] {
    const c10::InferenceMode guard;
    const TorchDevice::Scope scope(device);
    steps->Allocate(max_sequences);
    return absl::OkStatus();
  }));
  return steps;
}

}  // namespace kvferry::model
