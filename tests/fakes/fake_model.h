#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "model/model.h"
#include "tests/fakes/kv_values.h"

namespace kvferry::fakes {

// A model without weights: K and V are KvValue of layer, head, position and channel, and the next
// token is always (number of tokens) % vocabulary. Decode is not there.
class FakeModel : public model::Model {
 public:
  explicit FakeModel(codec::CacheGeometry geometry = {.layers = 4, .kv_heads = 2, .head_dim = 64},
                     int max_context_tokens = 4096)
      : geometry_(geometry) {
    config_.architecture = "llama";
    config_.layers = geometry.layers;
    config_.q_heads = config_.kv_heads = geometry.kv_heads;
    config_.head_dim = geometry.head_dim;
    config_.vocabulary = 1000;
    config_.max_context_tokens = max_context_tokens;
  }

  // Called before each layer: to hold the engine, or to fail.
  std::function<absl::Status(int layer, int tokens)> before_layer;
  // A K value of this layer and token is NaN.
  int nan_layer = -1, nan_token = -1;

  const model::ModelConfig& config() const override { return config_; }
  std::uint64_t weights_hash() const override { return 42; }
  absl::StatusOr<std::unique_ptr<model::PrefillSession>> StartPrefill(int max_tokens,
                                                                      codec::Raw16) override {
    return std::make_unique<Session>(*this, max_tokens);
  }
  absl::Status DecodeStep(std::span<const std::int32_t>, std::span<const std::int32_t>,
                          model::DecodeAttention&, std::span<float>) override {
    return absl::UnimplementedError("the fake model does not decode");
  }

 private:
  class Session final : public model::PrefillSession {
   public:
    Session(FakeModel& model, int max_tokens) : model_(model) {
      for (int layer = 0; layer < model.geometry_.layers; ++layer) {
        layers_.emplace_back(model.geometry_, layer, max_tokens);
        if (layer == model.nan_layer && model.nan_token < max_tokens) {
          layers_.back().k()[model.nan_token * (model.geometry_.head_dim + 8)] = 0x7e00;
        }
      }
    }
    absl::Status Run(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override {
      tokens_ += static_cast<int>(tokens.size());
      for (int layer = 0; layer < model_.geometry_.layers; ++layer) {
        if (model_.before_layer) {
          if (absl::Status status = model_.before_layer(layer, tokens_); !status.ok()) {
            return status;
          }
        }
        if (absl::Status status = on_layer(layer, layers_[layer].View(tokens_)); !status.ok()) {
          return status;
        }
      }
      logits_.assign(model_.config_.vocabulary, 0);
      logits_[tokens_ % model_.config_.vocabulary] = 10;
      return absl::OkStatus();
    }
    absl::Status RunAhead(std::span<const std::int32_t> tokens, const OnLayer& on_layer) override {
      return Run(tokens, on_layer);
    }
    absl::Status Score(std::span<const std::int32_t> tokens, std::span<float> logits) override {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto run =
            Run(tokens.subspan(i, 1), [](int, const codec::KvView&) { return absl::OkStatus(); });
        if (!run.ok()) return run;
        std::copy(logits_.begin(), logits_.end(), logits.begin() + i * logits_.size());
      }
      return absl::OkStatus();
    }
    std::span<const float> logits() const override { return logits_; }
    absl::Status Rewind(int tokens) override {
      tokens_ = tokens;
      return absl::OkStatus();
    }

   private:
    FakeModel& model_;
    int tokens_ = 0;
    std::vector<LayerKv> layers_;
    std::vector<float> logits_;
  };

  const codec::CacheGeometry geometry_;
  model::ModelConfig config_;
};

}  // namespace kvferry::fakes
