// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_WEIGH_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_WEIGH_CODES_INL_H_
#undef KVFERRY_KVCODEC_CPU_WEIGH_CODES_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_WEIGH_CODES_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvcodec/cpu/code_lines-inl.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

// Softmax of one block and p . V on its codes.

// Which scale groups the slots of a column and field half need. Columns with equal groups are one
// class.
struct Classes {
  int count = 0;
  std::array<std::array<std::uint8_t, 4>, kMaxGroups> groups{};  // by slot
  std::array<std::array<std::uint8_t, 2>, 8> of{};  // [column, the odd group last][field half]
};

template <int kBits>
Classes MakeClasses(const Shape<kBits>& shape, int v_group_channels) {
  Classes classes;
  constexpr int kFields = Shape<kBits>::kFields;
  for (int column = 0; column < shape.columns + (shape.odd ? 1 : 0); ++column) {
    for (int half = 0; half < (kFields == 8 ? 2 : 1); ++half) {
      std::array<std::uint8_t, 4> groups{};
      for (int slot = 0; slot < 4; ++slot) {
        const int n = column * shape.u + slot % shape.u;
        const int w = column == shape.columns ? shape.head_dim / 32 - 1 : n * kFields / 4 + half;
        groups[slot] = static_cast<std::uint8_t>(w * 32 / v_group_channels);
      }
      int id = 0;
      while (id < classes.count && classes.groups[id] != groups) ++id;
      if (id == classes.count) classes.groups[classes.count++] = groups;
      classes.of[column][half] = static_cast<std::uint8_t>(id);
    }
  }
  return classes;
}

// p * v_scale of one head and scale group as 16 bits, [tile / 2][j][r][tile % 2][h]; adds p *
// v_min. Returns what a 16-bit step is worth.
float QuantizeWeights(const std::byte* scale_bytes, const std::byte* min_bytes, const float* p,
                      std::int16_t* compact, float& min_sum) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<std::int16_t, DF> d16;
  const auto* scales = reinterpret_cast<const hwy::float16_t*>(scale_bytes);
  const auto* mins = reinterpret_cast<const hwy::float16_t*>(min_bytes);
  HWY_ALIGN float weights[kBlockTokens];
  VF top = hn::Zero(df), sum = hn::Zero(df);
  for (int i = 0; i < kBlockTokens; i += kLanesF) {
    const VF weight = hn::Load(df, p + i);
    const VF product = hn::Mul(weight, hn::PromoteTo(df, hn::LoadU(dh, scales + i)));
    sum = hn::MulAdd(weight, hn::PromoteTo(df, hn::LoadU(dh, mins + i)), sum);
    top = hn::Max(top, product);
    hn::Store(product, df, weights + i);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(df, top));
  min_sum += hn::GetLane(hn::SumOfLanes(df, sum));
  const VF factor = hn::Set(df, largest > 0 ? kTop / largest : 0.0f);
  for (int i = 0; i < kBlockTokens; i += 8) {  // (j, tile / 2)
    const auto code = RoundToInt(hn::Mul(hn::Load(df, weights + i), factor));
    hn::Store(hn::DemoteTo(d16, code), d16, compact + (i / 8 % 2 * 4 + i / 16) * 8);
  }
  return largest / kTop;
}

// Byte indices that copy 32-bit element e of each 16 bytes to all four.
HWY_INLINE VI CopyElement(VI v, int element) {
  const auto indices = hn::Set(DI(), 0x03020100 + element * 0x04040404);
  return hn::TableLookupBytes(v, indices);
}

// The line of weights for one class, tile part and r: slot s belongs to tile part * (4 / u) + s /
// u.
void SpreadWeights(const std::int16_t (&compact)[kMaxGroups][kBlockTokens],
                   const std::array<std::uint8_t, 4>& groups, int u, int part, int r,
                   std::int32_t* line) {
  const DI di;
  const DW dw;
  for (int i = 0; i < kParts; ++i) {
    const auto slot = [&](int s) HWY_ATTR {
      const int tile = part * (4 / u) + s / u;
      const auto* words = reinterpret_cast<const std::int32_t*>(compact[groups[s]]);
      return CopyElement(hn::LoadU(di, words + tile / 2 * kLine + i * kLanes), r * 2 + tile % 2);
    };
    const auto low = hn::BitCast(dw, hn::InterleaveLower(di, slot(0), slot(1)));
    const auto high = hn::BitCast(dw, hn::InterleaveLower(di, slot(2), slot(3)));
    hn::Store(hn::BitCast(di, hn::InterleaveLower(dw, low, high)), di, line + i * kLanes);
  }
}

// The same where all slots of a line want the same weights: u = 4 and one group.
HWY_INLINE void SpreadUniform(const std::int16_t* compact, int heads, std::int32_t* lines) {
  const DI di;
  const auto* words = reinterpret_cast<const std::int32_t*>(compact);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < kParts; ++i) {
      const VI source = hn::Load(di, words + half * kLine + i * kLanes);
      Unroll<0, 4>([&](auto e) KVFERRY_INLINE_LAMBDA {  // e = 2 * r + tile % 2
        const int line = (half * 2 + e % 2) * 2 + e / 2;
        hn::Store(hn::Broadcast<e>(source), di, lines + line * heads * kLine + i * kLanes);
      });
    }
  }
}

HWY_INLINE std::int32_t* WeightLine(Work& work, int id, int u, int part, int r, int heads) {
  return work.p + ((id * u + part) * 2 + r) * heads * kLine;
}

// Softmax of one block's scores; leaves the weights of every class and head in `work`.
template <int kHeads>
void PrepareWeights(const std::byte* block, const format::ScalarLayout& at, const Classes& classes,
                    int groups, int u, int out_floats, Work& work, BatchState& state) {
  const DF df;
  for (int h = 0; h < kHeads; ++h) {
    OrderScores(h, work);
    const float decay = SoftmaxStep(work.scores[h], kBlockTokens, state.m[h], state.l[h]);
    if (decay != 1.0f) {
      const VF factor = hn::Set(df, decay);
      for (int i = 0; i < out_floats; i += kLanesF) {
        hn::Store(hn::Mul(hn::Load(df, state.out[h] + i), factor), df, state.out[h] + i);
      }
      for (float& sum : state.min_sum[h]) sum *= decay;
      state.decay[h] *= decay;
    }
    HWY_ALIGN std::int16_t compact[kMaxGroups][kBlockTokens];
    float step[kMaxGroups];
    for (int group = 0; group < groups; ++group) {
      const int offset = group * kBlockTokens * 2;
      step[group] = QuantizeWeights(block + at.v_scale + offset, block + at.v_min + offset,
                                    work.scores[h], compact[group], state.min_sum[h][group]);
    }
    for (int id = 0; id < classes.count; ++id) {
      for (int slot = 0; slot < 4; ++slot) {
        work.v_scale[id][h][slot] = work.v_scale[id][h][4 + slot] = step[classes.groups[id][slot]];
      }
      const auto& of = classes.groups[id];
      if (u == 4 && of[0] == of[1] && of[0] == of[2] && of[0] == of[3]) {
        SpreadUniform(compact[of[0]], kHeads, WeightLine(work, id, u, 0, 0, kHeads) + h * kLine);
        continue;
      }
      for (int part = 0; part < u; ++part) {
        for (int r = 0; r < 2; ++r) {
          SpreadWeights(compact, classes.groups[id], u, part, r,
                        WeightLine(work, id, u, part, r, kHeads) + h * kLine);
        }
      }
    }
  }
}

// Fields [kBegin, kEnd) of one column and g over all tiles, into out[field * 4 + slot].
// kSource: the field of the word that is field kBegin (it differs only in the odd group).
template <int kBits, int kHeads, int kBegin, int kEnd, int kSource>
HWY_INLINE void AddColumn(const std::byte* line_begin, std::size_t part_bytes, int parts,
                          std::size_t stream_bytes, const std::int32_t* weights,
                          const float (*scale)[8], int out_offset, BatchState& state) {
  const DI di;
  const D16 d16;
  constexpr int kCount = kEnd - kBegin;
  VI sum[kCount][kHeads];
  for (int k = 0; k < kCount; ++k) {
    for (int h = 0; h < kHeads; ++h) sum[k][h] = hn::Zero(di);
  }
  Line<kBits> line;
  for (int tile_part = 0; tile_part < parts; ++tile_part) {
    for (int i = 0; i < kParts; ++i) {
      line.Load(line_begin + tile_part * part_bytes, stream_bytes, i);
      Unroll<0, 2>([&](auto r) KVFERRY_INLINE_LAMBDA {
        const std::int32_t* w = weights + (tile_part * 2 + r) * kHeads * kLine + i * kLanes;
        Unroll<0, kCount>([&](auto k) KVFERRY_INLINE_LAMBDA {
          const auto codes = line.template Field<kSource + k, r>();
          for (int h = 0; h < kHeads; ++h) {
            sum[k][h] = AddPairs(codes, hn::BitCast(d16, hn::Load(di, w + h * kLine)), sum[k][h]);
          }
        });
      });
    }
  }
  const DF d8;
  const D4F d4;
  for (int h = 0; h < kHeads; ++h) {
    float* out = state.out[h] + out_offset + kBegin * 4;
    const VF step = hn::Load(d8, scale[h]);
    for (int k = 0; k + 1 < kCount; k += 2) {
      const VF value = hn::ConvertTo(d8, SumLanePairs(sum[k][h], sum[k + 1][h]));
      hn::StoreU(hn::MulAdd(value, step, hn::LoadU(d8, out + k * 4)), d8, out + k * 4);
    }
    if constexpr (kCount == 1) {
      const auto value = hn::ConvertTo(d4, SumLanes(di, sum[0][h]));
      hn::Store(hn::MulAdd(value, hn::LowerHalf(d4, step), hn::Load(d4, out)), d4, out);
    }
  }
}

template <int kBits, int kHeads>
void AddCodes(const std::byte* codes, const Shape<kBits>& shape, const Classes& classes, Work& work,
              BatchState& state, BlockAhead& ahead) {
  constexpr int kFields = Shape<kBits>::kFields;
  constexpr int kStep = FieldsAtOnce<kBits, kHeads>();
  const std::size_t part_bytes = std::size_t{format::kPlaneBytes} * shape.columns;
  const int columns = shape.columns + (shape.odd ? 1 : 0);
  for (int g = 0; g < 8; ++g) {
    ahead.Fetch(work.ahead_bytes);
    for (int column = 0; column < shape.columns; ++column) {
      const int out = (g * columns + column) * kFields * 4;
      Unroll<0, kFields / kStep>([&](auto i) KVFERRY_INLINE_LAMBDA {
        constexpr int kBegin = i * kStep;
        const int id = classes.of[column][kBegin / 4];
        AddColumn<kBits, kHeads, kBegin, kBegin + kStep, kBegin>(
            codes + column * format::kPlaneBytes + g * 64, part_bytes, shape.u,
            shape.stream_bytes(), WeightLine(work, id, shape.u, 0, 0, kHeads), work.v_scale[id],
            out, state);
      });
    }
    if constexpr (Shape<kBits>::kShared) {
      if (shape.odd) {
        const int out = (g * columns + shape.columns) * kFields * 4;
        const int id = classes.of[shape.columns][0];
        const std::byte* line = codes + shape.words * format::kPlaneBytes + g / 2 * 64;
        const std::int32_t* weights = WeightLine(work, id, shape.u, 0, 0, kHeads);
        if (g % 2 == 0) {
          AddColumn<kBits, kHeads, 0, 4, 0>(line, 0, 1, shape.stream_bytes(), weights,
                                            work.v_scale[id], out, state);
        } else {
          AddColumn<kBits, kHeads, 0, 4, 4>(line, 0, 1, shape.stream_bytes(), weights,
                                            work.v_scale[id], out, state);
        }
      }
    }
  }
}

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
