// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_SCORE_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_SCORE_CODES_INL_H_
#undef KVFERRY_KVCODEC_CPU_SCORE_CODES_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_SCORE_CODES_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvcodec/cpu/code_lines-inl.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

// q . K of one block on its codes.

// q * scale as 16 bits, spread to the lanes of a line; sums of q * min.
template <int kHeads>
void PrepareQueries(const std::byte* block, const format::ScalarLayout& at, const BlockSpec& spec,
                    const float* q, Work& work) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<std::int16_t, DF> d16;
  const int d = spec.head_dim, rows = kBlockTokens / spec.k_group_tokens;
  HWY_ALIGN float scaled[kHeads][kMaxHeadDim];
  HWY_ALIGN std::int16_t compact[kHeads][2][kMaxHeadDim];
  for (int row = 0; row < rows; ++row) {
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(block + at.k_scale) + row * d;
    const auto* mins = reinterpret_cast<const hwy::float16_t*>(block + at.k_min) + row * d;
    VF top[kHeads], constant[kHeads];
    for (int h = 0; h < kHeads; ++h) top[h] = constant[h] = hn::Zero(df);
    for (int c = 0; c < d; c += kLanesF) {
      const VF scale = hn::PromoteTo(df, hn::LoadU(dh, scales + c));
      const VF min = hn::PromoteTo(df, hn::LoadU(dh, mins + c));
      for (int h = 0; h < kHeads; ++h) {
        const VF query = hn::LoadU(df, q + h * d + c);
        const VF product = hn::Mul(query, scale);
        hn::Store(product, df, &scaled[h][c]);
        top[h] = hn::Max(top[h], hn::Abs(product));
        constant[h] = hn::MulAdd(query, min, constant[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      const float largest = hn::GetLane(hn::MaxOfLanes(df, top[h]));
      const VF factor = hn::Set(df, largest > 0 ? kTop / largest : 0.0f);
      for (int c = 0; c < d; c += kLanesF) {
        const auto code = RoundToInt(hn::Mul(hn::Load(df, &scaled[h][c]), factor));
        hn::Store(hn::DemoteTo(d16, code), d16, &compact[h][row][c]);
      }
      const float sum = hn::GetLane(hn::SumOfLanes(df, constant[h]));
      // Tiles of this row: all four, or a pair of them; both r.
      for (int i = 0; i < 8; ++i) {
        if (i % 4 * rows / 4 != row) continue;
        work.k_scale[h][i] = largest / kTop;
        work.k_min[h][i] = sum;
      }
    }
  }
  const DI di;
  const DW dw;
  for (int h = 0; h < kHeads; ++h) {
    for (int w = 0; w < d / 32; ++w) {
      for (int part = 0; part < kParts; ++part) {
        const auto load = [&](int row) HWY_ATTR {  // [j][f]
          return hn::LoadU(
              di, reinterpret_cast<const std::int32_t*>(&compact[h][row][32 * w]) + part * kLanes);
        };
        const VI first = load(0);
        std::int32_t* out = work.q + (4 * w * kHeads + h) * kLine + part * kLanes;
        if (rows == 1) {
          Unroll<0, 4>([&](auto f) KVFERRY_INLINE_LAMBDA {
            hn::Store(hn::Broadcast<f>(first), di, out + f * kHeads * kLine);
          });
          continue;
        }
        const VI last = load(1);
        Unroll<0, 4>([&](auto f) KVFERRY_INLINE_LAMBDA {
          const auto low = hn::BitCast(dw, hn::Broadcast<f>(first));
          const auto high = hn::BitCast(dw, hn::Broadcast<f>(last));
          hn::Store(hn::BitCast(di, hn::InterleaveLower(dw, low, high)), di,
                    out + f * kHeads * kLine);
        });
      }
    }
  }
}

// Adds fields [kBegin, kEnd) of a line to the sums of both token halves r; q: of the first field.
template <int kBits, int kHeads, int kBegin, int kEnd>
HWY_INLINE void AddScores(const Line<kBits>& line, const std::int32_t* q, int part,
                          VI (&sum)[2][kHeads]) {
  const DI di;
  const D16 d16;
  Unroll<kBegin, kEnd>([&](auto k) KVFERRY_INLINE_LAMBDA {
    const auto low = line.template Field<k, 0>();
    const auto high = line.template Field<k, 1>();
    for (int h = 0; h < kHeads; ++h) {
      const auto query =
          hn::BitCast(d16, hn::Load(di, q + ((k - kBegin) * kHeads + h) * kLine + part * kLanes));
      sum[0][h] = AddPairs(low, query, sum[0][h]);
      sum[1][h] = AddPairs(high, query, sum[1][h]);
    }
  });
}

template <int kBits, int kHeads>
void ScoreCodes(const std::byte* codes, const Shape<kBits>& shape, Work& work, BlockAhead& ahead) {
  const DI di;
  constexpr int kFields = Shape<kBits>::kFields;
  for (int g = 0; g < 8; ++g) {
    ahead.Fetch(work.ahead_bytes);
    VI sum[2][kHeads];
    for (int h = 0; h < kHeads; ++h) sum[0][h] = sum[1][h] = hn::Zero(di);
    Line<kBits> line;
    for (int n = 0; n < shape.words; ++n) {
      const std::int32_t* q = work.q + n * kFields * kHeads * kLine;
      for (int part = 0; part < kParts; ++part) {
        line.Load(codes + n * format::kPlaneBytes + g * 64, shape.stream_bytes(), part);
        AddScores<kBits, kHeads, 0, kFields>(line, q, part, sum);
      }
    }
    if constexpr (Shape<kBits>::kShared) {
      if (shape.odd) {
        const std::int32_t* q = work.q + shape.words * kFields * kHeads * kLine;
        for (int part = 0; part < kParts; ++part) {
          line.Load(codes + shape.words * format::kPlaneBytes + g / 2 * 64, shape.stream_bytes(),
                    part);
          if (g % 2 == 0) {
            AddScores<kBits, kHeads, 0, 4>(line, q, part, sum);
          } else {
            AddScores<kBits, kHeads, 4, 8>(line, q, part, sum);
          }
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      hn::Store(SumLanePairs(sum[0][h], sum[1][h]), hn::CappedTag<std::int32_t, 8>(),
                work.raw_scores + h * kBlockTokens + g * 8);
    }
  }
}

// Scales the scores of one head and puts them into the order of V scales: [j][tile / 2][r][tile %
// 2][h].
void OrderScores(int h, Work& work) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const VF scale = hn::Load(df, work.k_scale[h]), min = hn::Load(df, work.k_min[h]);
  const std::int32_t* raw = work.raw_scores + h * kBlockTokens;
  for (int j = 0; j < 4; ++j) {
    const auto even = hn::ConvertTo(df, hn::Load(di, raw + 16 * j));
    const auto odd = hn::ConvertTo(df, hn::Load(di, raw + 16 * j + 8));
    const VF a = hn::MulAdd(even, scale, min), b = hn::MulAdd(odd, scale, min);
    hn::Store(hn::InterleaveLower(df, a, b), df, work.scores[h] + 16 * j);
    hn::Store(hn::InterleaveUpper(df, a, b), df, work.scores[h] + 16 * j + 8);
  }
}

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
