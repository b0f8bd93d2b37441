#include "bench/torch_attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "model/torch_device.h"

namespace kvferry::bench {
namespace {

class SdpaAttention : public TorchAttention {
 public:
  explicit SdpaAttention(model::TorchDevice device) : device_(std::move(device)) {}

  absl::Status Fill(int batch, int tokens, int q_heads, int kv_heads, int head_dim, int copies) {
    try {
      const c10::InferenceMode guard;
      const model::TorchDevice::Scope scope(device_);
      const at::TensorOptions options =
          at::TensorOptions().dtype(at::kHalf).device(device_.device());
      for (int i = 0; i < copies; ++i) {
        q_.push_back(at::randn({batch, q_heads, 1, head_dim}, options));
        k_.push_back(at::randn({batch, kv_heads, tokens, head_dim}, options));
        v_.push_back(at::randn({batch, kv_heads, tokens, head_dim}, options));
      }
    } catch (const std::exception& error) {
      return absl::ResourceExhaustedError(error.what());
    }
    return absl::OkStatus();
  }

  absl::Status Launch(Kernel kernel, int copy) override {
    try {
      const c10::InferenceMode guard;
      const model::TorchDevice::Scope scope(device_);
      at::Context& context = at::globalContext();
      context.setSDPUseFlash(kernel == Kernel::kFlash);
      context.setSDPUseCuDNN(kernel == Kernel::kCudnn);
      context.setSDPUseMath(false);
      context.setSDPUseMemEfficient(false);
      out_ = at::scaled_dot_product_attention(q_[copy], k_[copy], v_[copy], std::nullopt, 0.0,
                                              false, std::nullopt, true);
    } catch (const std::exception& error) {
      return absl::UnimplementedError(error.what());
    }
    return absl::OkStatus();
  }

 private:
  model::TorchDevice device_;
  std::vector<at::Tensor> q_, k_, v_;
  at::Tensor out_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TorchAttention>> TorchAttention::Create(int batch, int tokens,
                                                                       int q_heads, int kv_heads,
                                                                       int head_dim, int copies,
                                                                       kernels::Stream& stream) {
  KVF_ASSIGN_OR_RETURN(model::TorchDevice device, model::TorchDevice::Open("cuda:0", stream.get()));
  auto attention = std::make_unique<SdpaAttention>(std::move(device));
  KVF_RETURN_IF_ERROR(attention->Fill(batch, tokens, q_heads, kv_heads, head_dim, copies));
  return attention;
}

}  // namespace kvferry::bench
