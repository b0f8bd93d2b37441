#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kvcodec/backend.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/half.h"

// Keys and values for tests, and attention in fp64 to compare with.
namespace kvferry::codec {

inline std::uint16_t ToRaw16(Raw16 type, float value) {
  return type == Raw16::kFp16 ? HalfFromFloat(value) : Bf16FromFloat(value);
}

// Owns K and V, [kv_heads, tokens, head_dim] each.
struct KvSample {
  std::vector<std::uint16_t> k, v;
  KvView view;
};

// Normal values; every 16th channel of K is an outlier, as real keys have them.
inline KvSample MakeKv(int kv_heads, int tokens, int head_dim, Raw16 type, std::uint32_t seed) {
  KvSample kv;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const std::size_t values = static_cast<std::size_t>(kv_heads) * tokens * head_dim;
  for (std::size_t i = 0; i < values; ++i) {
    const auto channel = static_cast<int>(i % head_dim);
    const float outlier = channel % 16 == 3 ? 6.0f : 1.0f;
    const float mean = static_cast<float>(channel * 7 % 5 - 2) * 0.5f;
    kv.k.push_back(ToRaw16(type, normal(random) * outlier + mean));
    kv.v.push_back(ToRaw16(type, normal(random)));
  }
  kv.view = {kv.k.data(),
             kv.v.data(),
             type,
             kv_heads,
             tokens,
             head_dim,
             static_cast<std::int64_t>(tokens) * head_dim,
             head_dim};
  return kv;
}

// One value that no quantizer may store, and how the error names it where the sample is layer 3
// from head 8 and token 1000 on.
struct BadValue {
  float value;
  bool in_v;
  int head, token, channel;
  std::string error;

  // int8 and raw16 take values that fp16 scales of KVB cannot express.
  bool IsRefusedBy(BlockKind kind) const {
    return kind == BlockKind::kScalar || !std::isfinite(value);
  }
  KvSample Sample() const {
    KvSample kv = MakeKv(2, kBlockTokens, 128, Raw16::kBf16, 2);
    (in_v ? kv.v : kv.k)[(head * kBlockTokens + token) * 128 + channel] =
        std::isnan(value) ? 0x7fc1 : ToRaw16(Raw16::kBf16, value);
    return kv;
  }
};
inline constexpr BlockOrigin kBadValueOrigin = {
    .layer = 3, .kv_head_begin = 8, .token_begin = 1000};
inline std::vector<BadValue> BadValues() {
  return {{NAN, false, 1, 5, 77, "layer 3, head 9, K, token 1005, channel 77: the value"},
          {INFINITY, false, 0, 63, 0, "layer 3, head 8, K, token 1063, channel 0: the value"},
          {NAN, true, 1, 0, 127, "layer 3, head 9, V, token 1000, channel 127: the value"},
          {-INFINITY, true, 0, 31, 3, "layer 3, head 8, V, token 1031, channel 3: the value"},
          {-1e5f, false, 1, 9, 50, "layer 3, head 9, K, channel 50: the scale"},
          {3e38f, true, 1, 9, 50, "layer 3, head 9, V, token 1009: the scale"}};
}

// 128-byte aligned bytes with a guard on both sides that Check finds damaged.
class GuardedPage {
 public:
  explicit GuardedPage(std::size_t bytes)
      : bytes_(bytes), memory_(bytes + 2 * kGuard + 128, kFill) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data()) + kGuard;
    begin_ = memory_.data() + kGuard + (128 - address % 128) % 128;
  }
  std::span<std::byte> span() { return {begin_, bytes_}; }
  const std::byte* data() const { return begin_; }
  void Check() const {
    for (const std::byte* p = memory_.data(); p < memory_.data() + memory_.size(); ++p) {
      if (p >= begin_ && p < begin_ + bytes_) continue;
      ASSERT_EQ(*p, kFill) << "a byte outside the page was written";
    }
  }

 private:
  static constexpr std::size_t kGuard = 256;
  static constexpr std::byte kFill{0xa5};
  std::size_t bytes_;
  std::vector<std::byte> memory_;
  std::byte* begin_;
};

inline std::unique_ptr<Backend> MakeBackend(bool scalar, int threads = 1) {
  return CreateCpuBackend({.threads = threads, .scalar = scalar}).value();
}

// "scalar" and every SIMD target of this CPU: what the parameterized tests run on.
inline std::vector<std::string> BackendNames() {
  std::vector<std::string> names = SimdTargets();
  names.insert(names.begin(), "scalar");
  return names;
}
inline std::string BackendTestName(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::erase(name, '-');
  return name;
}
inline std::unique_ptr<Backend> MakeNamedBackend(const std::string& name, int threads = 1) {
  EXPECT_TRUE(ForceSimdTarget(name == "scalar" ? "" : name).ok());
  std::unique_ptr<Backend> backend = MakeBackend(name == "scalar", threads);
  EXPECT_EQ(backend->name(), "cpu-" + name);
  return backend;
}

inline BlockSpec ScalarSpec(int head_dim, int k_bits, int v_bits, int k_group, int v_group) {
  return {.kind = BlockKind::kScalar,
          .head_dim = head_dim,
          .k_bits = k_bits,
          .v_bits = v_bits,
          .k_group_tokens = k_group,
          .v_group_channels = v_group};
}

// All (GK, GV, head_dim) that are valid for these bits.
inline std::vector<BlockSpec> AllScalarSpecs(int k_bits, int v_bits) {
  std::vector<BlockSpec> specs;
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const int k_group : {32, 64}) {
      for (const int v_group : {32, 64, 128}) {
        const BlockSpec spec = ScalarSpec(head_dim, k_bits, v_bits, k_group, v_group);
        if (spec.Validate().ok()) specs.push_back(spec);
      }
    }
  }
  return specs;
}

inline BlockSpec LutSpec(LutTable table, int head_dim) {
  return {.kind = BlockKind::kLut, .head_dim = head_dim, .table = table};
}

inline std::string SpecName(const BlockSpec& spec) {
  return "kind " + std::to_string(static_cast<int>(spec.kind)) + " d " +
         std::to_string(spec.head_dim) + " k" + std::to_string(spec.k_bits) + "v" +
         std::to_string(spec.v_bits) + " GK " + std::to_string(spec.k_group_tokens) + " GV " +
         std::to_string(spec.v_group_channels) + " table " +
         std::to_string(static_cast<int>(spec.table));
}

// fp32 K and V in token order, [tokens, head_dim], of one KV head.
struct PlainHead {
  std::vector<float> k, v;
};

inline void AppendRaw(const KvView& kv, int head, PlainHead& out) {
  for (int token = 0; token < kv.tokens; ++token) {
    for (int channel = 0; channel < kv.head_dim; ++channel) {
      const std::int64_t i = head * kv.head_stride + token * kv.token_stride + channel;
      out.k.push_back(FloatFromRaw16(kv.type, kv.k[i]));
      out.v.push_back(FloatFromRaw16(kv.type, kv.v[i]));
    }
  }
}

// Attention of one query head in fp64.
inline std::vector<double> ExactAttention(const float* q, const PlainHead& head, int head_dim,
                                          double scale) {
  const std::size_t tokens = head.k.size() / head_dim;
  std::vector<double> scores(tokens), out(head_dim, 0.0);
  double top = -INFINITY, sum = 0;
  for (std::size_t token = 0; token < tokens; ++token) {
    double score = 0;
    for (int channel = 0; channel < head_dim; ++channel) {
      score += static_cast<double>(q[channel]) * head.k[token * head_dim + channel];
    }
    scores[token] = score * scale;
    top = std::max(top, scores[token]);
  }
  for (std::size_t token = 0; token < tokens; ++token) {
    const double p = std::exp(scores[token] - top);
    sum += p;
    for (int channel = 0; channel < head_dim; ++channel) {
      out[channel] += p * head.v[token * head_dim + channel];
    }
  }
  for (double& value : out) value /= sum;
  return out;
}

}  // namespace kvferry::codec
