#include "model/random_weights.h"

#include <isa-l/crc64.h>

#include <algorithm>
#include <cmath>

namespace kvferry::model {
namespace {

constexpr float kBiasSize = 0.02f;

// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

void FillRandomTensor(std::string_view name, std::int64_t columns, std::span<float> values) {
  if (name.ends_with("norm.weight")) {
    std::fill(values.begin(), values.end(), 1.0f);
    return;
  }
  const float deviation =
      name.ends_with(".bias") ? kBiasSize : 1 / std::sqrt(static_cast<float>(columns));
  // Uniform values in +- sqrt(3) deviations, of the upper 24 bits.
  const float step = 2 * std::sqrt(3.0f) * deviation / static_cast<float>(1 << 24);
  const std::uint64_t seed =
      crc64_ecma_refl(0, reinterpret_cast<const unsigned char*>(name.data()), name.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint64_t bits = Mix(seed + i * 0x9e3779b97f4a7c15u) >> 40;
    values[i] = (static_cast<float>(bits) - static_cast<float>(1 << 23)) * step;
  }
}

}  // namespace kvferry::model
