#include "model/rope.h"

#include <cmath>
#include <numbers>

namespace kvferry::model {
namespace {

// Long wavelengths are stretched by `factor`, short ones stay, those between are blended.
float Llama3Frequency(float frequency, const Llama3RopeScaling& scaling) {
  const auto original = static_cast<float>(scaling.original_max_context);
  const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
  if (wavelength < original / scaling.high_freq_factor) return frequency;
  if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
  const float blend = (original / wavelength - scaling.low_freq_factor) /
                      (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - blend) * frequency / scaling.factor + blend * frequency;
}

}  // namespace

Rope::Rope(const ModelConfig& config) {
  const int half = config.head_dim / 2;
  frequencies_.resize(half);
  for (int i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float frequency = 1.0f / std::pow(config.rope_base, exponent);
    if (config.rope_scaling) frequency = Llama3Frequency(frequency, *config.rope_scaling);
    if (!config.rope_factors.empty()) frequency /= config.rope_factors[i];
    frequencies_[i] = frequency;
  }
}

void Rope::Angles(std::int32_t position, float* cos, float* sin) const {
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    const float angle = static_cast<float>(position) * frequencies_[i];
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
}

}  // namespace kvferry::model
