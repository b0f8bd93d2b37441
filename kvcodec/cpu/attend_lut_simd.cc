#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"
#include "kvcodec/lut.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/attend_lut_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/level_lines-inl.h"
// clang-format on

// Attention on lut blocks: codes lie as those of KVB, and a permutation of the table's levels by
// the codes of a line gives fp32 operands for q and p. The scales of tokens meet scores and
// weights, never a level; the zeros of channels are one number per block and query head.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

void AttendLutBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                     const SoftmaxState& state) {
  ReferenceOps().attend_blocks(blocks, spec, group, state);
}

#else

// Queries as lines: a channel's value for all four tiles.
template <int kHeads>
void SpreadQueries(const float* q, int head_dim, LutWork& work) {
  float* out = work.q;
  for (int pair = 0; pair < head_dim / 8; ++pair) {
    for (int h = 0; h < 2; ++h) {
      for (int head = 0; head < kHeads; ++head, out += kLine) {
        const float* from = q + head * head_dim + pair / 4 * 32 + pair % 4 * 2 + h;
        for (int i = 0; i < kLine; ++i) out[i] = from[i / 4 * 8];
      }
    }
  }
}

// Few heads have several sums each, because a sum can only grow once in some cycles.
template <int kHeads>
constexpr int kChains = kHeads <= 2 ? 2 : 1;
template <int kHeads>
using ScoreSums = VL[2][kChains<kHeads>][kHeads];  // [r][chain][head]

// Adds fields [kBegin, kEnd) of a line; q: of the first field.
template <int kBits, int kHeads, int kBegin, int kEnd>
HWY_INLINE void AddScores(const Line<kBits>& line, const Levels& levels, const float* q, int part,
                          ScoreSums<kHeads>& sum) {
  const DL dl;
  Unroll<kBegin, kEnd>([&](auto k) KVFERRY_INLINE_LAMBDA {
    Unroll<0, 2>([&](auto h) KVFERRY_INLINE_LAMBDA {
      const VL low = levels.template Find<kBits>(CodesOf<kBits, k, 0, h>(line));
      const VL high = levels.template Find<kBits>(CodesOf<kBits, k, 1, h>(line));
      const float* lines = q + ((k - kBegin) * 2 + h) * kHeads * kLine + part * kLanes;
      constexpr int kChain = h % kChains<kHeads>;
      for (int head = 0; head < kHeads; ++head) {
        const VL query = hn::Load(dl, lines + head * kLine);
        sum[0][kChain][head] = hn::MulAdd(low, query, sum[0][kChain][head]);
        sum[1][kChain][head] = hn::MulAdd(high, query, sum[1][kChain][head]);
      }
    });
  });
}

template <int kBits, int kHeads>
void ScoreCodes(const std::byte* codes, const Shape<kBits>& shape, const Levels& levels,
                LutWork& work, BlockAhead& ahead) {
  const DL dl;
  constexpr int kStep = Shape<kBits>::kFields * 2 * kHeads * kLine;
  for (int g = 0; g < 8; ++g) {
    ahead.Fetch(work.ahead_bytes);
    ScoreSums<kHeads> sum;
    for (auto& of_r : sum) {
      for (auto& chain : of_r) std::fill_n(chain, kHeads, hn::Zero(dl));
    }
    Line<kBits> line;
    for (int n = 0; n < shape.words; ++n) {
      for (int part = 0; part < kParts; ++part) {
        line.Load(codes + n * format::kPlaneBytes + g * 64, shape.stream_bytes(), part);
        AddScores<kBits, kHeads, 0, Shape<kBits>::kFields>(line, levels, work.q + n * kStep, part,
                                                           sum);
      }
    }
    if constexpr (Shape<kBits>::kShared) {
      for (int part = 0; shape.odd && part < kParts; ++part) {
        line.Load(codes + shape.words * format::kPlaneBytes + g / 2 * 64, shape.stream_bytes(),
                  part);
        const float* q = work.q + shape.words * kStep;
        if (g % 2 == 0) {
          AddScores<kBits, kHeads, 0, 4>(line, levels, q, part, sum);
        } else {
          AddScores<kBits, kHeads, 4, 8>(line, levels, q, part, sum);
        }
      }
    }
    for (int r = 0; r < 2; ++r) {
      for (int head = 0; head < kHeads; ++head) {
        VL total = sum[r][0][head];
        if constexpr (kChains<kHeads> == 2) total = hn::Add(total, sum[r][1][head]);
        hn::Store(SumLanes(dl, total), D4F(), work.raw[head] + g * 8 + r * 4);
      }
    }
  }
}

// What the zeros of a block add to all scores of a query head.
template <int kHeads>
void MultiplyZeros(const std::byte* zeros, const float* q, int head_dim, LutWork& work) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const auto* values = reinterpret_cast<const hwy::float16_t*>(zeros);
  for (int head = 0; head < kHeads; ++head) {
    VF sum = hn::Zero(df);
    for (int channel = 0; channel < head_dim; channel += kLanesF) {
      const VF zero = hn::PromoteTo(df, hn::LoadU(dh, values + channel));
      sum = hn::MulAdd(hn::LoadU(df, q + head * head_dim + channel), zero, sum);
    }
    work.shift[head] = hn::GetLane(hn::SumOfLanes(df, sum));
  }
}

// Softmax of one block's scores; leaves p * scale as lines.
template <int kHeads>
void PrepareWeights(const std::byte* k_scale, const std::byte* v_scale, int u, int out_floats,
                    int head_dim, int first_head, const SoftmaxState& state, LutWork& work) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const auto* k_scales = reinterpret_cast<const hwy::float16_t*>(k_scale);
  const auto* v_scales = reinterpret_cast<const hwy::float16_t*>(v_scale);
  for (int head = 0; head < kHeads; ++head) {
    float* scores = work.scores[head];
    const VF shift = hn::Set(df, work.shift[head]);
    for (int i = 0; i < kBlockTokens; i += 16) {  // g = 2j and 2j + 1, the halves h of a pair
      const auto scaled = [&](int at) HWY_ATTR {
        return hn::MulAdd(hn::Load(df, work.raw[head] + at),
                          hn::PromoteTo(df, hn::LoadU(dh, k_scales + at)), shift);
      };
      const VF even = scaled(i), odd = scaled(i + 8);
      hn::Store(hn::InterleaveLower(df, even, odd), df, scores + i);
      hn::Store(hn::InterleaveUpper(df, even, odd), df, scores + i + 8);
    }
    const int row = first_head + head;
    const float decay = SoftmaxStep(scores, kBlockTokens, state.m[row], state.l[row]);
    if (decay != 1.0f) {
      float* o = state.o + static_cast<std::ptrdiff_t>(row) * head_dim;
      for (int i = 0; i < head_dim; ++i) o[i] *= decay;
      for (int i = 0; i < out_floats; ++i) work.out[head][i] *= decay;
    }
    for (int i = 0; i < kBlockTokens; i += kLanesF) {
      const VF scale = hn::PromoteTo(df, hn::LoadU(dh, v_scales + i));
      hn::Store(hn::Mul(hn::Load(df, scores + i), scale), df, scores + i);
    }
    for (int line = 0; line < 4 * u; ++line) {  // (tile part, r, h)
      float* out = work.p + (line * kHeads + head) * kLine;
      for (int slot = 0; slot < 4; ++slot) {
        const int tile = line / 4 * (4 / u) + slot / u;
        const float* of_j = scores + tile / 2 * 8 + line / 2 % 2 * 4 + tile % 2 * 2 + line % 2;
        for (int j = 0; j < 4; ++j) out[4 * j + slot] = of_j[16 * j];
      }
    }
  }
}

// Fields [kBegin, kEnd) of one column and g over all tiles, whose first is field kSource of a word.
template <int kBits, int kHeads, int kBegin, int kEnd, int kSource>
HWY_INLINE void AddColumn(const std::byte* line_begin, std::size_t part_bytes, int parts,
                          std::size_t stream_bytes, const Levels& levels, int out_offset,
                          LutWork& work) {
  const DL dl;
  constexpr int kCount = kEnd - kBegin;
  for (int part = 0; part < kParts; ++part) {
    const int out = out_offset + kBegin * kLine + part * kLanes;
    VL sum[kCount][kHeads];
    for (int k = 0; k < kCount; ++k) {
      for (int h = 0; h < kHeads; ++h) sum[k][h] = hn::Load(dl, work.out[h] + out + k * kLine);
    }
    Line<kBits> line;
    for (int tile_part = 0; tile_part < parts; ++tile_part) {
      line.Load(line_begin + tile_part * part_bytes, stream_bytes, part);
      Unroll<0, 4>([&](auto rh) KVFERRY_INLINE_LAMBDA {
        const float* weights = work.p + (tile_part * 4 + rh) * kHeads * kLine + part * kLanes;
        Unroll<0, kCount>([&](auto k) KVFERRY_INLINE_LAMBDA {
          const VL level =
              levels.template Find<kBits>(CodesOf<kBits, kSource + k, rh / 2, rh % 2>(line));
          for (int h = 0; h < kHeads; ++h) {
            sum[k][h] = hn::MulAdd(level, hn::Load(dl, weights + h * kLine), sum[k][h]);
          }
        });
      });
    }
    for (int k = 0; k < kCount; ++k) {
      for (int h = 0; h < kHeads; ++h) hn::Store(sum[k][h], dl, work.out[h] + out + k * kLine);
    }
  }
}

template <int kBits, int kHeads>
void AddCodes(const std::byte* codes, const Shape<kBits>& shape, const Levels& levels,
              LutWork& work, BlockAhead& ahead) {
  constexpr int kFields = Shape<kBits>::kFields;
  constexpr int kStep = FieldsAtOnce<kBits, kHeads>();
  const std::size_t part_bytes = std::size_t{format::kPlaneBytes} * shape.columns;
  const int columns = shape.columns + (shape.odd ? 1 : 0);
  for (int g = 0; g < 8; ++g) {
    ahead.Fetch(work.ahead_bytes);
    for (int column = 0; column < shape.columns; ++column) {
      const std::byte* line = codes + column * format::kPlaneBytes + g * 64;
      const int out = (g * columns + column) * kFields * kLine;
      Unroll<0, kFields / kStep>([&](auto i) KVFERRY_INLINE_LAMBDA {
        AddColumn<kBits, kHeads, i * kStep, (i + 1) * kStep, i * kStep>(
            line, part_bytes, shape.u, shape.stream_bytes(), levels, out, work);
      });
    }
    if constexpr (Shape<kBits>::kShared) {
      if (!shape.odd) continue;
      const std::byte* line = codes + shape.words * format::kPlaneBytes + g / 2 * 64;
      const int out = (g * columns + shape.columns) * kFields * kLine;
      if (g % 2 == 0) {
        AddColumn<kBits, kHeads, 0, 4, 0>(line, 0, 1, shape.stream_bytes(), levels, out, work);
      } else {
        AddColumn<kBits, kHeads, 0, 4, 4>(line, 0, 1, shape.stream_bytes(), levels, out, work);
      }
    }
  }
}

// Back from lines to channels.
template <int kBits>
void Finish(const Shape<kBits>& shape, const float* out, float* o) {
  constexpr int kFields = Shape<kBits>::kFields;
  const DL dl;
  for (int g = 0; g < 8; ++g) {
    for (int column = 0; column < shape.columns + (shape.odd ? 1 : 0); ++column) {
      const bool odd = column == shape.columns;
      for (int k = 0; k < kFields; ++k, out += kLine) {
        if (odd && k >= 4) continue;  // an odd group has half the fields
        HWY_ALIGN float slots[4] = {};
        for (int part = 0; part < kParts; ++part) {
          const auto sum = SumLanes(dl, hn::Load(dl, out + part * kLanes));
          hn::Store(hn::Add(sum, hn::Load(D4F(), slots)), D4F(), slots);
        }
        for (int slot = 0; slot < 4; ++slot) {
          const int n = odd ? shape.words : column * shape.u + slot % shape.u;
          const int pair = n * kFields + k;
          o[pair / 4 * 32 + 4 * g + pair % 4] += slots[slot];
        }
      }
    }
  }
}

template <int kBits, int kHeads>
void AttendHeads(const HeadBlocks& blocks, const BlockSpec& spec, const Lut& lut,
                 const QueryGroup& group, int head, const SoftmaxState& state) {
  const format::LutLayout at = format::LutBlock(spec.head_dim, lut.bits, lut.shifted_keys);
  const float* q = group.q + static_cast<std::ptrdiff_t>(head) * spec.head_dim;
  const Shape<kBits> shape(spec.head_dim);
  const Levels levels(lut);
  const int out_floats = 8 * (shape.columns + (shape.odd ? 1 : 0)) * Shape<kBits>::kFields * kLine;
  LutWork work;
  work.ahead_bytes = (at.bytes / 64 + kAheadSteps - 1) / kAheadSteps * 64;
  for (auto& out : work.out) std::fill_n(out, out_floats, 0.0f);
  SpreadQueries<kHeads>(q, spec.head_dim, work);
  for (std::size_t n = 0; n < blocks.count; ++n) {
    const std::byte* block = blocks.pages[n] + blocks.head_offset;
    BlockAhead ahead = {blocks.after, blocks.after == nullptr ? 0 : at.bytes};
    if (n + 1 < blocks.count) ahead = {blocks.pages[n + 1] + blocks.head_offset, at.bytes};
    ScoreCodes<kBits, kHeads>(block + at.k_codes, shape, levels, work, ahead);
    if (lut.shifted_keys) MultiplyZeros<kHeads>(block + at.k_zero, q, spec.head_dim, work);
    PrepareWeights<kHeads>(block + at.k_scale, block + at.v_scale, shape.u, out_floats,
                           spec.head_dim, head, state, work);
    AddCodes<kBits, kHeads>(block + at.v_codes, shape, levels, work, ahead);
  }
  for (int h = 0; h < kHeads; ++h) {
    Finish(shape, work.out[h], state.o + static_cast<std::ptrdiff_t>(head + h) * spec.head_dim);
  }
}

template <int kBits>
void AttendBits(const HeadBlocks& blocks, const BlockSpec& spec, const Lut& lut,
                const QueryGroup& group, const SoftmaxState& state) {
  for (int head = 0; head < group.heads; head += kBatch) {
    switch (std::min(kBatch, group.heads - head)) {
      case 1:
        AttendHeads<kBits, 1>(blocks, spec, lut, group, head, state);
        break;
      case 2:
        AttendHeads<kBits, 2>(blocks, spec, lut, group, head, state);
        break;
      case 3:
        AttendHeads<kBits, 3>(blocks, spec, lut, group, head, state);
        break;
      default:
        AttendHeads<kBits, 4>(blocks, spec, lut, group, head, state);
    }
  }
}

void AttendLutBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                     const SoftmaxState& state) {
  const Lut& lut = *FindLut(spec.table);
  switch (lut.bits) {
    case 2:
      return AttendBits<2>(blocks, spec, lut, group, state);
    case 3:
      return AttendBits<3>(blocks, spec, lut, group, state);
    default:
      return AttendBits<4>(blocks, spec, lut, group, state);
  }
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(AttendLutBlocks);

void AttendLutBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                         const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendLutBlocks)(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
#endif
