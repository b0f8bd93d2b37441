#pragma once

#include <atomic>
#include <cmath>
#include <vector>

#include "tests/fakes/fake_model.h"

namespace kvferry::fakes {

// A FakeModel that decodes: K and V of each new token are KvValue again, and the token after
// position p is (p + 1) % vocabulary, as the prefill side has it. Runs the attention it is given
// and refuses answers that are not numbers.
class FakeDecodeModel final : public FakeModel {
 public:
  using FakeModel::FakeModel;

  // Called before each layer of a step, on the engine's thread: to hold it, or to fail.
  std::function<absl::Status(int layer, std::size_t sequences)> before_decode_layer;
  std::atomic<std::size_t> largest_batch{0};

  absl::Status DecodeStep(std::span<const std::int32_t> tokens,
                          std::span<const std::int32_t> positions,
                          model::DecodeAttention& attention, std::span<float> logits) override {
    if (tokens.size() > largest_batch) largest_batch = tokens.size();
    const model::ModelConfig& shape = config();
    const std::size_t heads = static_cast<std::size_t>(shape.kv_heads) * shape.head_dim;
    std::vector<float> q(tokens.size() * shape.q_heads * shape.head_dim, 0.125f);
    std::vector<float> out(q.size());
    std::vector<std::uint16_t> k(tokens.size() * heads), v(k.size());
    for (int layer = 0; layer < shape.layers; ++layer) {
      if (before_decode_layer) {
        if (absl::Status status = before_decode_layer(layer, tokens.size()); !status.ok()) {
          return status;
        }
      }
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        for (int head = 0; head < shape.kv_heads; ++head) {
          for (int channel = 0; channel < shape.head_dim; ++channel) {
            const std::size_t at = i * heads + head * shape.head_dim + channel;
            k[at] = KvValue(false, layer, head, positions[i], channel);
            v[at] = KvValue(true, layer, head, positions[i], channel);
          }
        }
        if (layer == nan_layer && positions[i] == nan_token) k[i * heads] = 0x7e00;
      }
      const absl::Status status =
          attention.AppendAndAttend(layer, q.data(), k.data(), v.data(), out.data());
      if (!status.ok()) return status;
      for (const float x : out) {
        // V is in [0.25, 1), so is every mean of it, up to what a codec loses.
        if (nan_token < 0 && !(x > 0.1f && x < 1.2f)) {
          return absl::InternalError("attention gave a value that is no mean of V");
        }
      }
    }
    std::fill(logits.begin(), logits.end(), 0.0f);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      logits[i * shape.vocabulary + (positions[i] + 1) % shape.vocabulary] = 10;
    }
    return absl::OkStatus();
  }
};

}  // namespace kvferry::fakes
