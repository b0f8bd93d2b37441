#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kvcodec/codebooks.h"
#include "tests/kvcodec/kv_samples.h"

// Codebooks for tests, and the rotation of keys in fp64 to compare with.
namespace kvferry::codec {

// Centroids like the values of MakeKv, and the frequencies of a model with a base of 10,000.
inline std::shared_ptr<const Codebooks> MakeCodebooks(const CodebookShape& shape,
                                                      std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1.5f);
  std::vector<float> frequencies(shape.head_dim / 2);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] =
        std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(shape.head_dim));
  }
  std::vector<std::uint16_t> centroids(shape.values());
  for (std::uint16_t& value : centroids) value = HalfFromFloat(normal(random));
  return Codebooks::Create(shape, frequencies, centroids, "{\"seed\": 1}").value();
}

inline BlockSpec CoupledSpec(const Codebooks& books, int layer) {
  return {.kind = BlockKind::kCoupled,
          .head_dim = books.shape().head_dim,
          .coupling = books.shape().coupling,
          .codebooks = &books,
          .layer = layer};
}

// A key at `position` to what it was before RoPE.
inline void TurnBack(const Codebooks& books, int position, std::vector<double>& key) {
  const std::span<const float> frequencies = books.rotation().frequencies();
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double angle = position * static_cast<double>(frequencies[i]);
    const double low = key[i], high = key[i + frequencies.size()];
    key[i] = low * std::cos(angle) + high * std::sin(angle);
    key[i + frequencies.size()] = high * std::cos(angle) - low * std::sin(angle);
  }
}

}  // namespace kvferry::codec
