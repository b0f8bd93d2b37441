#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kvcodec/half.h"
#include "model/model.h"

namespace kvferry::model {

// Attention of decode steps over uncompressed 16-bit K and V, in plain loops: what a cache without
// loss would do.
class ExactAttention : public DecodeAttention {
 public:
  ExactAttention(const ModelConfig& config, int sequences, codec::Raw16 type)
      : config_(config), sequences_(sequences), type_(type) {
    cache_.resize(static_cast<std::size_t>(config.layers * sequences * config.kv_heads));
  }

  codec::Raw16 raw_type() const override { return type_; }

  // What a prefill left of `layer` for `sequence`.
  void Append(int layer, int sequence, const codec::KvView& kv) {
    for (int head = 0; head < kv.kv_heads; ++head) {
      Head& cache = At(layer, sequence, head);
      for (int token = 0; token < kv.tokens; ++token) {
        const auto offset = head * kv.head_stride + token * kv.token_stride;
        Push(kv.k + offset, cache.k);
        Push(kv.v + offset, cache.v);
      }
    }
  }

  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    const int group = config_.q_heads / config_.kv_heads;
    for (int sequence = 0; sequence < sequences_; ++sequence) {
      for (int head = 0; head < config_.kv_heads; ++head) {
        Head& cache = At(layer, sequence, head);
        Push(k, cache.k);
        Push(v, cache.v);
        k += config_.head_dim;
        v += config_.head_dim;
        for (int g = 0; g < group; ++g, q += config_.head_dim, out += config_.head_dim) {
          Attend(q, cache, out);
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Head {
    std::vector<float> k, v;  // [tokens, head_dim]
  };

  Head& At(int layer, int sequence, int head) {
    return cache_[static_cast<std::size_t>((layer * sequences_ + sequence) * config_.kv_heads +
                                           head)];
  }
  void Push(const std::uint16_t* row, std::vector<float>& to) const {
    for (int i = 0; i < config_.head_dim; ++i) {
      to.push_back(type_ == codec::Raw16::kBf16
                       ? std::bit_cast<float>(static_cast<std::uint32_t>(row[i]) << 16)
                       : codec::FloatFromHalf(row[i]));
    }
  }
  void Attend(const float* q, const Head& cache, float* out) const {
    const auto dim = static_cast<std::size_t>(config_.head_dim);
    const std::size_t tokens = cache.k.size() / dim;
    std::vector<float> weights(tokens);
    float top = -INFINITY;
    for (std::size_t t = 0; t < tokens; ++t) {
      float sums[8] = {};  // independent, so that the loop runs in vector registers
      for (std::size_t i = 0; i < dim; i += 8) {
        for (std::size_t j = 0; j < std::min<std::size_t>(8, dim - i); ++j) {
          sums[j] += q[i + j] * cache.k[t * dim + i + j];
        }
      }
      weights[t] = std::accumulate(sums, sums + 8, 0.0f) / std::sqrt(static_cast<float>(dim));
      top = std::max(top, weights[t]);
    }
    float total = 0;
    for (float& weight : weights) total += weight = std::exp(weight - top);
    std::fill_n(out, dim, 0.0f);
    for (std::size_t t = 0; t < tokens; ++t) {
      const float weight = weights[t] / total;
      for (std::size_t i = 0; i < dim; ++i) out[i] += weight * cache.v[t * dim + i];
    }
  }

  const ModelConfig config_;
  const int sequences_;
  const codec::Raw16 type_;
  std::vector<Head> cache_;  // [layers, sequences, kv_heads]
};

}  // namespace kvferry::model
