// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_ATTEND_TOKENS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_ATTEND_TOKENS_INL_H_
#undef KVFERRY_KVCODEC_CPU_ATTEND_TOKENS_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_ATTEND_TOKENS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kvcodec/code_io.h"
#include "kvcodec/cpu/ops.h"
#include "kvcodec/cpu/simd-inl.h"
#include "kvcodec/cpu/softmax-inl.h"
#include "kvcodec/half.h"

#if KVFERRY_SIMD_TARGET

// Attention over values that stand in token order, whatever they are made of: a source (simd-inl.h)
// gives them as fp32.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

using DF = hn::CappedTag<float, 16>;
using VF = hn::VFromD<DF>;
constexpr int kLanesF = hn::MaxLanes(DF());

constexpr int kMaxBatch = 4;  // query heads that share one read
// Scores of one batch and up to 64 tokens, then probabilities: [head][token].
struct Scores {
  HWY_ALIGN float at[kMaxBatch][kBlockTokens + 16];
};

// scores[h][t] = q[h] . k[t]
template <int kHeads, class Source>
HWY_INLINE void ScoreTokens(const Source& k, std::int64_t stride, int tokens, const float* q, int d,
                            Scores& scores) {
  const DF df;
  for (int token = 0; token < tokens; ++token) {
    VF sum[kHeads];
    for (int h = 0; h < kHeads; ++h) sum[h] = hn::Zero(df);
    for (int c = 0; c < d; c += kLanesF) {
      const VF value = k.Load(df, token * stride + c);
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = hn::MulAdd(value, hn::LoadU(df, q + h * d + c), sum[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      scores.at[h][token] = hn::GetLane(hn::SumOfLanes(df, sum[h]));
    }
  }
}

// o[h] = o[h] * decay[h] + sum over t of p[h][t] * v[t]. value: of a token, channels from one on.
template <int kHeads, class Value>
HWY_INLINE void AddValues(const Value& value, int tokens, const Scores& p, const float* decay,
                          int d, float* o) {
  const DF df;
  constexpr int kColumns = 2;
  for (int c = 0; c < d; c += kColumns * kLanesF) {
    VF sum[kColumns][kHeads];
    for (int i = 0; i < kColumns; ++i) {
      for (int h = 0; h < kHeads; ++h) {
        sum[i][h] = hn::Mul(hn::LoadU(df, o + h * d + c + i * kLanesF), hn::Set(df, decay[h]));
      }
    }
    for (int token = 0; token < tokens; ++token) {
      for (int i = 0; i < kColumns; ++i) {
        const VF v = value(token, c + i * kLanesF);
        for (int h = 0; h < kHeads; ++h) {
          sum[i][h] = hn::MulAdd(v, hn::Set(df, p.at[h][token]), sum[i][h]);
        }
      }
    }
    for (int i = 0; i < kColumns; ++i) {
      for (int h = 0; h < kHeads; ++h) hn::StoreU(sum[i][h], df, o + h * d + c + i * kLanesF);
    }
  }
}

// Up to 64 tokens. k_scale, v_scale: fp16, one per token, or null.
template <int kHeads, class Source>
void AttendTokens(const Source& k, const Source& v, std::int64_t stride, int tokens,
                  const std::byte* k_scale, const std::byte* v_scale, const QueryGroup& group,
                  int head, const SoftmaxState& state) {
  const int d = group.head_dim;
  Scores scores;
  float decay[kHeads];
  ScoreTokens<kHeads>(k, stride, tokens, group.q + head * d, d, scores);
  if (k_scale != nullptr) {
    for (int token = 0; token < tokens; ++token) {
      const float scale = FloatFromHalf(LoadU16(k_scale, token));
      for (int h = 0; h < kHeads; ++h) scores.at[h][token] *= scale;
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    decay[h] = SoftmaxStep(scores.at[h], tokens, state.m[head + h], state.l[head + h]);
  }
  if (v_scale != nullptr) {
    for (int token = 0; token < tokens; ++token) {
      const float scale = FloatFromHalf(LoadU16(v_scale, token));
      for (int h = 0; h < kHeads; ++h) scores.at[h][token] *= scale;
    }
  }
  const auto value = [&](int token, int channel)
                         HWY_ATTR { return v.Load(DF(), token * stride + channel); };
  AddValues<kHeads>(value, tokens, scores, decay, d, state.o + head * d);
}

// Calls attend(batch, head) for batches of query heads, the size of each known when compiled.
template <class Attend>
HWY_INLINE void ForBatches(int heads, const Attend& attend) {
  for (int head = 0; head < heads; head += kMaxBatch) {
    switch (std::min(kMaxBatch, heads - head)) {
      case 1:
        attend(std::integral_constant<int, 1>(), head);
        break;
      case 2:
        attend(std::integral_constant<int, 2>(), head);
        break;
      case 3:
        attend(std::integral_constant<int, 3>(), head);
        break;
      default:
        attend(std::integral_constant<int, 4>(), head);
    }
  }
}

template <class Source>
void AttendAllHeads(const Source& k, const Source& v, std::int64_t stride, int tokens,
                    const std::byte* k_scale, const std::byte* v_scale, const QueryGroup& group,
                    const SoftmaxState& state) {
  ForBatches(group.heads, [&]<int kHeads>(std::integral_constant<int, kHeads>, int head) HWY_ATTR {
    AttendTokens<kHeads>(k, v, stride, tokens, k_scale, v_scale, group, head, state);
  });
}

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
