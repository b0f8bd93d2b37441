#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"
#include "kvcodec/half.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/attend_raw_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/simd-inl.h"
#include "kvcodec/cpu/softmax-inl.h"
// clang-format on

// Attention over values that stand in token order: 16-bit tokens, raw16, int8 and fp8
// blocks.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

void AttendRaw(const HeadRows& rows, int tokens, const QueryGroup& group,
               const SoftmaxState& state) {
  ReferenceOps().attend_raw(rows, tokens, group, state);
}
void AttendPlainBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                       const SoftmaxState& state) {
  ReferenceOps().attend_blocks(blocks, spec, group, state);
}

#else

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

// o[h] = o[h] * decay[h] + sum over t of p[h][t] * v[t]
template <int kHeads, class Source>
HWY_INLINE void AddValues(const Source& v, std::int64_t stride, int tokens, const Scores& p,
                          const float* decay, int d, float* o) {
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
        const VF value = v.Load(df, token * stride + c + i * kLanesF);
        for (int h = 0; h < kHeads; ++h) {
          sum[i][h] = hn::MulAdd(value, hn::Set(df, p.at[h][token]), sum[i][h]);
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
  AddValues<kHeads>(v, stride, tokens, scores, decay, d, state.o + head * d);
}

template <class Source>
void AttendAllHeads(const Source& k, const Source& v, std::int64_t stride, int tokens,
                    const std::byte* k_scale, const std::byte* v_scale, const QueryGroup& group,
                    const SoftmaxState& state) {
  for (int head = 0; head < group.heads; head += kMaxBatch) {
    const auto attend = [&]<int kHeads>(std::integral_constant<int, kHeads>) HWY_ATTR {
      AttendTokens<kHeads>(k, v, stride, tokens, k_scale, v_scale, group, head, state);
    };
    switch (std::min(kMaxBatch, group.heads - head)) {
      case 1:
        attend(std::integral_constant<int, 1>());
        break;
      case 2:
        attend(std::integral_constant<int, 2>());
        break;
      case 3:
        attend(std::integral_constant<int, 3>());
        break;
      default:
        attend(std::integral_constant<int, 4>());
    }
  }
}

template <Raw16 kType>
void AttendRawOf(const HeadRows& rows, int tokens, const QueryGroup& group,
                 const SoftmaxState& state) {
  for (int begin = 0; begin < tokens; begin += kBlockTokens) {
    const Raw16Source<kType> k = {rows.k + begin * rows.token_stride};
    const Raw16Source<kType> v = {rows.v + begin * rows.token_stride};
    AttendAllHeads(k, v, rows.token_stride, std::min(kBlockTokens, tokens - begin), nullptr,
                   nullptr, group, state);
  }
}

void AttendRaw(const HeadRows& rows, int tokens, const QueryGroup& group,
               const SoftmaxState& state) {
  if (rows.type == Raw16::kFp16) {
    AttendRawOf<Raw16::kFp16>(rows, tokens, group, state);
  } else {
    AttendRawOf<Raw16::kBf16>(rows, tokens, group, state);
  }
}

// Blocks of byte codes, one scale per token.
template <class Source, class Code>
void AttendByteBlocks(const HeadBlocks& blocks, const format::TokenScaleLayout& at,
                      const QueryGroup& group, const SoftmaxState& state) {
  for (std::size_t i = 0; i < blocks.count; ++i) {
    const std::byte* block = blocks.pages[i] + blocks.head_offset;
    const Source k = {reinterpret_cast<const Code*>(block + at.k_codes)};
    const Source v = {reinterpret_cast<const Code*>(block + at.v_codes)};
    AttendAllHeads(k, v, group.head_dim, kBlockTokens, block + at.k_scale, block + at.v_scale,
                   group, state);
  }
}

void AttendPlainBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                       const SoftmaxState& state) {
  const int d = spec.head_dim;
  if (spec.kind == BlockKind::kInt8) {
    return AttendByteBlocks<Int8Source, std::int8_t>(blocks, format::Int8Block(d), group, state);
  }
  if (spec.kind == BlockKind::kFp8) {
    return AttendByteBlocks<Fp8Source, std::uint8_t>(blocks, format::Fp8Block(d), group, state);
  }
  const format::Raw16Layout at = format::Raw16Block(d);
  for (std::size_t i = 0; i < blocks.count; ++i) {
    const std::byte* block = blocks.pages[i] + blocks.head_offset;
    const HeadRows rows = {reinterpret_cast<const std::uint16_t*>(block + at.k),
                           reinterpret_cast<const std::uint16_t*>(block + at.v), d, spec.raw_type};
    AttendRaw(rows, kBlockTokens, group, state);
  }
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(AttendRaw);
HWY_EXPORT(AttendPlainBlocks);

void AttendRawSimd(const HeadRows& rows, int tokens, const QueryGroup& group,
                   const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendRaw)(rows, tokens, group, state);
}

void AttendPlainBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                           const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendPlainBlocks)(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
#endif
