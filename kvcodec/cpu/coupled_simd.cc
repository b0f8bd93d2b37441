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

struct FloatSource {
  const float* values;

  template <class D>
  HWY_INLINE hn::VFromD<D> Load(D df, std::int64_t index) const {
    return hn::LoadU(df, values + index);
  }
};

// (low, high) turned by the angle, or by its opposite; `to` may be `from`.
template <bool kForward>
HWY_INLINE void Turn(const float* cos, const float* sin, int half, const float* from, float* to) {
  const DF df;
  for (int i = 0; i < half; i += kLanesF) {
    const VF low = hn::LoadU(df, from + i), high = hn::LoadU(df, from + half + i);
    const VF c = hn::LoadU(df, cos + i), s = hn::LoadU(df, sin + i);
    if constexpr (kForward) {
      hn::StoreU(hn::NegMulAdd(high, s, hn::Mul(low, c)), df, to + i);
      hn::StoreU(hn::MulAdd(low, s, hn::Mul(high, c)), df, to + half + i);
    } else {
      hn::StoreU(hn::MulAdd(high, s, hn::Mul(low, c)), df, to + i);
      hn::StoreU(hn::NegMulAdd(low, s, hn::Mul(high, c)), df, to + half + i);
    }
  }
}

// A score is the same if the query turns back by the place of the block, and the keys forward by
// their own place in it.
void AttendCoupledBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                         const SoftmaxState& state) {
  const int d = spec.head_dim;
  const format::CoupledLayout at =
      format::CoupledBlock(d, spec.coupling.channels, spec.coupling.bits);
  const KeyRotation& rotation = spec.codebooks->rotation();
  const float* k_book = spec.codebooks->Side(spec.layer, blocks.place.kv_head, false).by_code;
  const float* v_book = spec.codebooks->Side(spec.layer, blocks.place.kv_head, true).by_code;
  // Kept per thread, because one call follows another with the same sizes.
  static thread_local std::vector<float> memory;
  const std::size_t values = std::size_t{kBlockTokens} * d;
  memory.resize(2 * values + static_cast<std::size_t>(group.heads) * d);
  float* k = memory.data();
  float* v = k + values;
  float* q = v + values;
  const QueryGroup turned = {q, group.heads, d};
  for (std::size_t n = 0; n < blocks.count; ++n) {
    const std::byte* block = blocks.pages[n] + blocks.head_offset;
    const BlockTurns turns(rotation,
                           blocks.place.token + static_cast<std::int64_t>(n) * kBlockTokens);
    for (int head = 0; head < group.heads; ++head) {
      const auto row = static_cast<std::ptrdiff_t>(head) * d;
      Turn<false>(turns.cos(), turns.sin(), d / 2, group.q + row, q + row);
    }
    for (int token = 0; token < kBlockTokens; ++token) {
      const auto row = static_cast<std::ptrdiff_t>(token);
      GetRow(block + at.k_codes + row * at.row_bytes, d, spec.coupling, k_book, k + row * d);
      GetRow(block + at.v_codes + row * at.row_bytes, d, spec.coupling, v_book, v + row * d);
    }
    // Not at once: vectors would wait for the centroids that have just been stored.
    for (int token = 0; token < kBlockTokens; ++token) {
      const auto row = static_cast<std::ptrdiff_t>(token);
      Turn<true>(rotation.token_cos() + row * (d / 2), rotation.token_sin() + row * (d / 2), d / 2,
                 k + row * d, k + row * d);
    }
    AttendAllHeads(FloatSource{k}, FloatSource{v}, d, kBlockTokens, nullptr, nullptr, turned,
                   state);
  }
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
