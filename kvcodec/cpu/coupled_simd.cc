#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcodec/cpu/coupled_rows.h"
#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/coupled_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/attend_tokens-inl.h"
// clang-format on

// Coupled blocks: the nearest of many centroids at once, and attention over the centroids of 64
// tokens at a time, which never leave the cache next to the core.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

bool QuantizeCoupled(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return ReferenceOps().quantize(rows, spec, block);
}
void AttendCoupledBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                         const SoftmaxState& state) {
  ReferenceOps().attend_blocks(blocks, spec, group, state);
}

#else

using DI = hn::RebindToSigned<DF>;
using VI = hn::VFromD<DI>;

constexpr int kTokensAtOnce = 4;  // that share a read of the centroids

// The nearest centroids of one group of channels in some tokens. x: [kTokensAtOnce][stride].
// by_channel: [channel][code]. Of two equally near the lower code.
template <int kChannels>
HWY_INLINE void Nearest(const float* x, std::ptrdiff_t stride, const float* by_channel, int count,
                        std::uint32_t* codes, std::ptrdiff_t code_stride) {
  const DF df;
  const DI di;
  VF least[kTokensAtOnce];
  VI nearest[kTokensAtOnce];
  VI code = hn::Iota(di, 0);
  for (int first = 0; first < count; first += kLanesF) {
    VF centroid[kChannels];
    for (int i = 0; i < kChannels; ++i) {
      centroid[i] = hn::LoadU(df, by_channel + static_cast<std::ptrdiff_t>(i) * count + first);
    }
    for (int token = 0; token < kTokensAtOnce; ++token) {
      VF distance = hn::Zero(df);
      for (int i = 0; i < kChannels; ++i) {
        const VF step = hn::Sub(hn::Set(df, x[token * stride + i]), centroid[i]);
        distance = hn::Add(distance, hn::Mul(step, step));
      }
      if (first == 0) {
        least[token] = distance;
        nearest[token] = code;
        continue;
      }
      const auto nearer = hn::Lt(distance, least[token]);
      least[token] = hn::IfThenElse(nearer, distance, least[token]);
      nearest[token] = hn::IfThenElse(hn::RebindMask(di, nearer), code, nearest[token]);
    }
    code = hn::Add(code, hn::Set(di, kLanesF));
  }
  for (int token = 0; token < kTokensAtOnce; ++token) {
    const auto same = hn::Eq(least[token], hn::MinOfLanes(df, least[token]));
    const VI candidates = hn::IfThenElse(hn::RebindMask(di, same), nearest[token],
                                         hn::Set(di, hwy::HighestValue<std::int32_t>()));
    codes[token * code_stride] =
        static_cast<std::uint32_t>(hn::GetLane(hn::MinOfLanes(di, candidates)));
  }
}

template <int kChannels, Raw16 kType>
void QuantizeSide(const std::uint16_t* values, std::int64_t stride, const BlockSpec& spec,
                  const SideCodebook& book, const BlockTurns* turns, std::byte* rows) {
  const DF df;
  const int d = spec.head_dim, count = spec.coupling.centroids();
  const int row_bytes = d / kChannels * spec.coupling.bits / 8;
  const Raw16Source<kType> source = {values};
  std::vector<float> x(static_cast<std::size_t>(kTokensAtOnce) * d);
  std::vector<std::uint32_t> codes(x.size() / kChannels);
  for (int first = 0; first < kBlockTokens; first += kTokensAtOnce) {
    for (int token = 0; token < kTokensAtOnce; ++token) {
      float* to = x.data() + static_cast<std::ptrdiff_t>(token) * d;
      for (int channel = 0; channel < d; channel += kLanesF) {
        hn::StoreU(source.Load(df, (first + token) * stride + channel), df, to + channel);
      }
      if (turns != nullptr) turns->Back(first + token, to);
    }
    const int groups = d / kChannels;
    for (int group = 0; group < groups; ++group) {
      Nearest<kChannels>(x.data() + static_cast<std::ptrdiff_t>(group) * kChannels, d,
                         book.by_channel + static_cast<std::ptrdiff_t>(group) * kChannels * count,
                         count, codes.data() + group, groups);
    }
    for (int token = 0; token < kTokensAtOnce; ++token, rows += row_bytes) {
      PutRow(codes.data() + static_cast<std::ptrdiff_t>(token) * groups, d, spec.coupling, rows);
    }
  }
}

template <int kChannels, Raw16 kType>
bool QuantizeBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  if (!AllFinite<kType>(rows.k, rows.token_stride, spec.head_dim) ||
      !AllFinite<kType>(rows.v, rows.token_stride, spec.head_dim)) {
    return false;
  }
  const format::CoupledLayout at =
      format::CoupledBlock(spec.head_dim, kChannels, spec.coupling.bits);
  const BlockTurns turns(spec.codebooks->rotation(), rows.place.token);
  QuantizeSide<kChannels, kType>(rows.k, rows.token_stride, spec,
                                 spec.codebooks->Side(spec.layer, rows.place.kv_head, false),
                                 &turns, block + at.k_codes);
  QuantizeSide<kChannels, kType>(rows.v, rows.token_stride, spec,
                                 spec.codebooks->Side(spec.layer, rows.place.kv_head, true),
                                 nullptr, block + at.v_codes);
  return true;
}

template <int kChannels>
bool QuantizeChannels(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return rows.type == Raw16::kFp16 ? QuantizeBlock<kChannels, Raw16::kFp16>(rows, spec, block)
                                   : QuantizeBlock<kChannels, Raw16::kBf16>(rows, spec, block);
}

bool QuantizeCoupled(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  switch (spec.coupling.channels) {
    case 2:
      return QuantizeChannels<2>(rows, spec, block);
    case 4:
      return QuantizeChannels<4>(rows, spec, block);
    default:
      return QuantizeChannels<8>(rows, spec, block);
  }
}

// Rows of codes as the centroids that they stand for. by_code: of their side.
template <int kChannels, int kBits>
struct CoupledRows {
  const std::byte* rows;
  std::ptrdiff_t row_bytes;
  const std::uint16_t* by_code;  // fp16

  // Channels of a token, from a multiple of D's lanes on, in fp32. Put together in registers: a
  // vector that is loaded where its centroids have just been stored waits for them.
  template <class D>
  HWY_INLINE hn::VFromD<D> Load(D df, int token, std::size_t channel) const {
    constexpr int kCodes = std::max<int>(1, hn::MaxLanes(D()) / kChannels);
    const std::size_t group = channel / kChannels;
    const hn::Rebind<std::uint16_t, D> d16;
    const auto halves = Centroids<0>(d16, CodesFrom<kBits, kCodes>(rows + token * row_bytes, group),
                                     by_code + (group << kBits) * kChannels + channel % kChannels);
    return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), halves));
  }

 private:
  // From channel kFirst of `codes` on; their books follow each other from `book` on.
  template <int kFirst, class D>
  HWY_INLINE hn::VFromD<D> Centroids(D d16, std::uint64_t codes, const std::uint16_t* book) const {
    constexpr int kLanes = hn::MaxLanes(D());
    if constexpr (kLanes <= kChannels) {
      constexpr std::uint64_t kGroup = kFirst / kChannels, kMask = (std::uint64_t{1} << kBits) - 1;
      const std::uint64_t code = codes >> (kGroup * kBits) & kMask;
      return hn::LoadU(d16, book + ((kGroup << kBits) + code) * kChannels);
    } else {
      const hn::Half<D> half;
      return hn::Combine(d16, Centroids<kFirst + kLanes / 2>(half, codes, book),
                         Centroids<kFirst>(half, codes, book));
    }
  }
};

// (low, high) turned back by the angle: what a query is when keys turn by less.
HWY_INLINE void TurnBack(const float* cos, const float* sin, int half, const float* from,
                         float* to) {
  const DF df;
  for (int i = 0; i < half; i += kLanesF) {
    const VF low = hn::LoadU(df, from + i), high = hn::LoadU(df, from + half + i);
    const VF c = hn::LoadU(df, cos + i), s = hn::LoadU(df, sin + i);
    hn::StoreU(hn::MulAdd(high, s, hn::Mul(low, c)), df, to + i);
    hn::StoreU(hn::NegMulAdd(low, s, hn::Mul(high, c)), df, to + half + i);
  }
}

// scores[h][t] = q[h] . k[t] of a block, its keys turned by their place in it. All tokens for some
// channels, then for the next ones: the centroids of few channels stay next to the core.
template <int kHeads, class Rows>
HWY_INLINE void ScoreCoupled(const Rows& k, const KeyRotation& rotation, const float* q, int d,
                             Scores& scores) {
  const DF df;
  const int half = d / 2;
  HWY_ALIGN float sums[kBlockTokens][kHeads][kLanesF];
  for (int i = 0; i < half; i += kLanesF) {
    VF q_low[kHeads], q_high[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      q_low[h] = hn::LoadU(df, q + h * d + i);
      q_high[h] = hn::LoadU(df, q + h * d + half + i);
    }
    const float *cos = rotation.token_cos() + i, *sin = rotation.token_sin() + i;
    for (int token = 0; token < kBlockTokens; ++token, cos += half, sin += half) {
      const VF low = k.Load(df, token, i), high = k.Load(df, token, half + i);
      const VF c = hn::LoadU(df, cos), s = hn::LoadU(df, sin);
      const VF turned_low = hn::NegMulAdd(high, s, hn::Mul(low, c));
      const VF turned_high = hn::MulAdd(low, s, hn::Mul(high, c));
      for (int h = 0; h < kHeads; ++h) {
        float* const sum = sums[token][h];
        const VF before = i == 0 ? hn::Zero(df) : hn::Load(df, sum);
        hn::Store(hn::MulAdd(turned_high, q_high[h], hn::MulAdd(turned_low, q_low[h], before)), df,
                  sum);
      }
    }
  }
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int h = 0; h < kHeads; ++h) {
      scores.at[h][token] = hn::GetLane(hn::SumOfLanes(df, hn::Load(df, sums[token][h])));
    }
  }
}

// A score is the same if the query turns back by the place of the block, and the keys forward by
// their own place in it.
template <int kChannels, int kBits>
void AttendCoupling(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                    const SoftmaxState& state) {
  const int d = spec.head_dim;
  const format::CoupledLayout at = format::CoupledBlock(d, kChannels, kBits);
  const KeyRotation& rotation = spec.codebooks->rotation();
  const std::uint16_t* k_book =
      spec.codebooks->Side(spec.layer, blocks.place.kv_head, false).by_code;
  const std::uint16_t* v_book =
      spec.codebooks->Side(spec.layer, blocks.place.kv_head, true).by_code;
  for (std::size_t n = 0; n < blocks.count; ++n) {
    const std::byte* block = blocks.pages[n] + blocks.head_offset;
    const CoupledRows<kChannels, kBits> k = {block + at.k_codes, at.row_bytes, k_book};
    const CoupledRows<kChannels, kBits> v = {block + at.v_codes, at.row_bytes, v_book};
    const BlockTurns turns(rotation,
                           blocks.place.token + static_cast<std::int64_t>(n) * kBlockTokens);
    ForBatches(group.heads, [&]<int kHeads>(std::integral_constant<int, kHeads>,
                                            int head) HWY_ATTR {
      Scores scores;
      float decay[kHeads];
      HWY_ALIGN float q[kHeads * 2 * kMostHalf];
      for (int h = 0; h < kHeads; ++h) {
        TurnBack(turns.cos(), turns.sin(), d / 2, group.q + (head + h) * d, q + h * d);
      }
      ScoreCoupled<kHeads>(k, rotation, q, d, scores);
      for (int h = 0; h < kHeads; ++h) {
        decay[h] = SoftmaxStep(scores.at[h], kBlockTokens, state.m[head + h], state.l[head + h]);
      }
      const auto value = [&](int token, int channel)
                             HWY_ATTR { return v.Load(DF(), token, channel); };
      AddValues<kHeads>(value, kBlockTokens, scores, decay, d, state.o + head * d);
    });
  }
}

void AttendCoupledBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                         const SoftmaxState& state) {
  WithCoupling(spec.coupling, [&]<int kChannels, int kBits>(CouplingOf<kChannels, kBits>) {
    AttendCoupling<kChannels, kBits>(blocks, spec, group, state);
  });
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(QuantizeCoupled);
HWY_EXPORT(AttendCoupledBlocks);

bool QuantizeCoupledSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return HWY_DYNAMIC_DISPATCH(QuantizeCoupled)(rows, spec, block);
}

void AttendCoupledBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec,
                             const QueryGroup& group, const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendCoupledBlocks)(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
#endif
