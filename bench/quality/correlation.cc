#include "bench/quality/correlation.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <utility>

#include "bench/quality/passage_tensors.h"
#include "common/status_macros.h"
#include "model/torch_device.h"
#include "model/torch_status.h"

namespace kvferry::bench {
namespace {

// First and second moments of the channels of every head.
struct Moments {
  at::Tensor sum;       // [heads, head_dim] double
  at::Tensor products;  // [heads, head_dim, head_dim]
  std::int64_t tokens = 0;

  void Add(const at::Tensor& x) {
    const at::Tensor wide = x.to(at::kDouble);
    const at::Tensor one = wide.sum(1), two = at::matmul(wide.transpose(1, 2), wide);
    sum = sum.defined() ? sum + one : one;
    products = products.defined() ? products + two : two;
    tokens += x.size(1);
  }

  Correlation Measure() const {
    const auto count = static_cast<double>(tokens);
    const at::Tensor mean = (sum / count).cpu();
    const at::Tensor covariance = products.cpu() / count - mean.unsqueeze(2) * mean.unsqueeze(1);
    const at::Tensor variance = covariance.diagonal(0, 1, 2);
    const at::Tensor deviation = variance.sqrt();
    const at::Tensor correlation =
        (covariance / (deviation.unsqueeze(2) * deviation.unsqueeze(1))).abs();
    const auto channels = static_cast<double>(variance.size(1));
    const double all = correlation.mean().item<double>();
    const at::Tensor eigenvalues = at::linalg_eigvalsh(covariance);
    return {.mean = (all * channels - 1) / (channels - 1),  // without the ones of the diagonal
            .gain_bits =
                0.5 * (at::log2(variance).mean() - at::log2(eigenvalues.clamp_min(1e-30)).mean())
                          .item<double>()};
  }
};

class TorchCorrelations final : public Correlations {
 public:
  TorchCorrelations(const Device& device, model::TorchDevice torch)
      : config_(device.model().config()), torch_(std::move(torch)), layers_(config_.layers) {}

  absl::Status Add(const ExactPassage& passage) override {
    return Run([&] {
      const int tokens = passage.prompt.layers.front().tokens;
      const Rotations rotations = MakeRotations(config_, tokens, torch_.device());
      for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
        const KeysValues kv = ToTensors(passage.prompt.layers[layer], torch_.device());
        layers_[layer].keys.Add(kv.k);
        layers_[layer].keys_before_rope.Add(TurnBack(kv.k, rotations));
        layers_[layer].values.Add(kv.v);
      }
    });
  }

  absl::StatusOr<std::vector<LayerCorrelations>> Layers() const override {
    std::vector<LayerCorrelations> measured;
    KVF_RETURN_IF_ERROR(Run([&] {
      for (const Layer& layer : layers_) {
        measured.push_back({.keys_before_rope = layer.keys_before_rope.Measure(),
                            .keys = layer.keys.Measure(),
                            .values = layer.values.Measure()});
      }
    }));
    return measured;
  }

 private:
  struct Layer {
    Moments keys_before_rope, keys, values;
  };

  template <typename Work>
  absl::Status Run(Work work) const {
    return model::CatchTorch("correlations of channels", [&]() -> absl::Status {
      const c10::InferenceMode guard;
      const model::TorchDevice::Scope scope(torch_);
      work();
      return absl::OkStatus();
    });
  }

  const model::ModelConfig& config_;
  const model::TorchDevice torch_;
  std::vector<Layer> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Correlations>> Correlations::Create(const Device& device) {
  KVF_ASSIGN_OR_RETURN(model::TorchDevice torch,
                       model::TorchDevice::Open(device.torch_device(), device.stream()));
  return std::make_unique<TorchCorrelations>(device, std::move(torch));
}

}  // namespace kvferry::bench
