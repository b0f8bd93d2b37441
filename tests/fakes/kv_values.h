#pragma once

#include <cstdint>
#include <vector>

#include "kvcodec/kv_view.h"
#include "kvcodec/plan.h"

namespace kvferry::fakes {

// One fp16 value of a made-up cache: positive, finite, different for neighbours, equal everywhere.
inline std::uint16_t KvValue(bool value, int layer, int head, int token, int channel) {
  std::uint32_t x = (value ? 0x9e3779b9u : 0x85ebca6bu) + layer * 0x01000193u + head * 0x27d4eb2fu +
                    token * 0x165667b1u + channel * 0xc2b2ae35u;
  x ^= x >> 15;
  x *= 0x2c1b3c6du;
  x ^= x >> 13;
  return static_cast<std::uint16_t>(0x3400 + x % 0x0800);  // 0.25 .. 1
}

// K and V of one layer, filled with KvValue, with strides that are not the tightest ones.
class LayerKv {
 public:
  LayerKv(const codec::CacheGeometry& geometry, int layer, int tokens)
      : geometry_(geometry), tokens_(tokens) {
    const std::size_t size = static_cast<std::size_t>(geometry.kv_heads) * tokens * token_stride();
    k_.resize(size);
    v_.resize(size);
    for (int head = 0; head < geometry.kv_heads; ++head) {
      for (int token = 0; token < tokens; ++token) {
        for (int channel = 0; channel < geometry.head_dim; ++channel) {
          const std::size_t at =
              (static_cast<std::size_t>(head) * tokens + token) * token_stride() + channel;
          k_[at] = KvValue(false, layer, head, token, channel);
          v_[at] = KvValue(true, layer, head, token, channel);
        }
      }
    }
  }

  codec::KvView View(int tokens) const {
    return {.k = k_.data(),
            .v = v_.data(),
            .type = codec::Raw16::kFp16,
            .kv_heads = geometry_.kv_heads,
            .tokens = tokens,
            .head_dim = geometry_.head_dim,
            .head_stride = static_cast<std::int64_t>(tokens_) * token_stride(),
            .token_stride = token_stride()};
  }
  codec::KvView View() const { return View(tokens_); }
  std::vector<std::uint16_t>& k() { return k_; }

 private:
  std::int64_t token_stride() const { return geometry_.head_dim + 8; }
  codec::CacheGeometry geometry_;
  int tokens_;
  std::vector<std::uint16_t> k_, v_;
};

}  // namespace kvferry::fakes
