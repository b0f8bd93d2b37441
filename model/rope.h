#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/model_config.h"

namespace kvferry::model {

// Rotary embedding as Hugging Face computes it: channel i of a head turns with channel
// i + head_dim / 2; frequencies and angles in fp32. Immutable. Thread: any.
class Rope {
 public:
  explicit Rope(const ModelConfig& config);

  // [head_dim / 2]
  std::span<const float> frequencies() const { return frequencies_; }
  // cos and sin of the angles at `position`: [head_dim / 2] each.
  void Angles(std::int32_t position, float* cos, float* sin) const;
  // Turns one head in place.
  void Rotate(const float* cos, const float* sin, float* head) const {
    const std::size_t half = frequencies_.size();
    for (std::size_t i = 0; i < half; ++i) {
      const float low = head[i];
      const float high = head[i + half];
      head[i] = low * cos[i] - high * sin[i];
      head[i + half] = high * cos[i] + low * sin[i];
    }
  }

 private:
  std::vector<float> frequencies_;
};

}  // namespace kvferry::model
