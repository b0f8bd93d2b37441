#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/quantize_codes_simd.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/pack_codes-inl.h"
// clang-format on

// KVB blocks: scales and codes per group, then packed.

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

bool QuantizeScalarBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return ReferenceOps().quantize(rows, spec, block);
}

#else

// K: smallest and largest of each channel over GK tokens.
template <class Source>
void RangesOfK(const Source& source, std::int64_t stride, const BlockSpec& spec, Workspace& work) {
  const DF df;
  for (int row = 0; row < kBlockTokens / spec.k_group_tokens; ++row) {
    for (int channel = 0; channel < spec.head_dim; channel += 2 * kLanesF) {
      const std::int64_t first = row * spec.k_group_tokens * stride + channel;
      VF low0 = source.Load(df, first), low1 = source.Load(df, first + kLanesF);
      VF high0 = low0, high1 = low1;
      for (int token = 1; token < spec.k_group_tokens; ++token) {
        const VF value0 = source.Load(df, first + token * stride);
        const VF value1 = source.Load(df, first + token * stride + kLanesF);
        low0 = hn::Min(low0, value0);
        high0 = hn::Max(high0, value0);
        low1 = hn::Min(low1, value1);
        high1 = hn::Max(high1, value1);
      }
      float* low = work.low + row * spec.head_dim + channel;
      float* high = work.high + row * spec.head_dim + channel;
      hn::Store(low0, df, low);
      hn::Store(low1, df, low + kLanesF);
      hn::Store(high0, df, high);
      hn::Store(high1, df, high + kLanesF);
    }
  }
}

// V: smallest and largest of each token over GV channels, at the position of its scale.
template <class Source>
void RangesOfV(const Source& source, std::int64_t stride, const BlockSpec& spec, Workspace& work) {
  const DF df;
  const int groups = spec.head_dim / spec.v_group_channels;
  for (int token = 0; token < kBlockTokens; ++token) {
    const int position = format::VScalePosition(token);
    for (int group = 0; group < groups; ++group) {
      const std::int64_t first = token * stride + group * spec.v_group_channels;
      VF low0 = source.Load(df, first), low1 = source.Load(df, first + kLanesF);
      VF high0 = low0, high1 = low1;
      for (int channel = 2 * kLanesF; channel < spec.v_group_channels; channel += 2 * kLanesF) {
        const VF value0 = source.Load(df, first + channel);
        const VF value1 = source.Load(df, first + channel + kLanesF);
        low0 = hn::Min(low0, value0);
        high0 = hn::Max(high0, value0);
        low1 = hn::Min(low1, value1);
        high1 = hn::Max(high1, value1);
      }
      const int index = group * kBlockTokens + position;
      work.low[index] = hn::GetLane(hn::MinOfLanes(df, hn::Min(low0, low1)));
      work.high[index] = hn::GetLane(hn::MaxOfLanes(df, hn::Max(high0, high1)));
    }
  }
}

// MakeGroupScale of group_scale.h, eight groups at a time.
bool MakeScales(int groups, float levels, Workspace& work, std::byte* scale_out,
                std::byte* min_out) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const hn::Rebind<std::uint16_t, DF> du16;
  const hn::RebindToSigned<decltype(du16)> di16;
  const auto exponent = hn::Set(du16, 0x7c00);
  auto overflow = hn::Zero(du16);
  for (int i = 0; i < groups; i += kLanesF) {
    auto min = hn::BitCast(du16, hn::DemoteTo(df16, hn::Load(df, work.low + i)));
    min = hn::IfThenZeroElse(hn::Eq(min, hn::Set(du16, 0x8000)), min);
    const VF min_value = hn::PromoteTo(df, hn::BitCast(df16, min));
    const VF range = hn::Sub(hn::Load(df, work.high + i), min_value);
    auto scale = hn::BitCast(du16, hn::DemoteTo(df16, hn::Div(range, hn::Set(df, levels))));
    const auto sign = hn::BitCast(du16, hn::BroadcastSignBit(hn::BitCast(di16, scale)));
    scale = hn::AndNot(sign, scale);
    const VF scale_value = hn::PromoteTo(df, hn::BitCast(df16, scale));
    const VF inverse = hn::IfThenZeroElse(hn::Eq(scale_value, hn::Zero(df)),
                                          hn::Div(hn::Set(df, 1.0f), scale_value));
    for (const auto bits : {min, scale}) {
      const auto full = hn::Eq(hn::And(bits, exponent), exponent);
      overflow = hn::Or(overflow, hn::VecFromMask(du16, full));
    }
    hn::StoreU(min, du16, reinterpret_cast<std::uint16_t*>(min_out) + i);
    hn::StoreU(scale, du16, reinterpret_cast<std::uint16_t*>(scale_out) + i);
    hn::Store(min_value, df, work.min + i);
    hn::Store(inverse, df, work.inverse + i);
  }
  return hn::AllTrue(du16, hn::Eq(overflow, hn::Zero(du16)));
}

// Codes of four tokens and eight channels: rounds and clamps.
HWY_INLINE void StoreCodes(const VF (&values)[4], hn::Vec256<std::uint8_t> top,
                           std::uint32_t* units) {
  const hn::VFromD<DI> codes[4] = {RoundToInt(values[0]), RoundToInt(values[1]),
                                   RoundToInt(values[2]), RoundToInt(values[3])};
  StoreUnits(hn::Min(JoinCodes(codes), top), units);
}

HWY_INLINE hn::Vec256<std::uint8_t> TopCode(int bits) {
  return hn::Set(hn::Full256<std::uint8_t>(), static_cast<std::uint8_t>((1 << bits) - 1));
}

// The 64 rows that are needed next, asked for line by line: one Fetch per four tokens of eight
// channels.
struct RowsAhead {
  const std::uint16_t* row;  // null: nothing
  std::int64_t stride;
  int head_dim;
  int channel = 0;

  HWY_INLINE void Fetch() {
    if (row == nullptr) return;
    hwy::Prefetch(row + channel);
    channel += 32;
    if (channel < head_dim) return;
    channel = 0;
    row += stride;
  }
};

template <class Source>
void CodesOfK(const Source& source, std::int64_t stride, const BlockSpec& spec, RowsAhead ahead,
              Workspace& work) {
  const DF df;
  const auto top = TopCode(spec.k_bits);
  for (int channel = 0; channel < spec.head_dim; channel += kLanesF) {
    for (int row = 0; row < kBlockTokens / spec.k_group_tokens; ++row) {
      const VF min = hn::Load(df, work.min + row * spec.head_dim + channel);
      const VF inverse = hn::Load(df, work.inverse + row * spec.head_dim + channel);
      const int begin = row * spec.k_group_tokens;
      for (int token = begin; token < begin + spec.k_group_tokens; token += 4) {
        VF values[4];
        for (int i = 0; i < 4; ++i) {
          const VF value = source.Load(df, (token + i) * stride + channel);
          values[i] = hn::Mul(hn::Sub(value, min), inverse);
        }
        ahead.Fetch();
        StoreCodes(values, top, &work.units[channel / 4][token]);
      }
    }
  }
}

template <class Source>
void CodesOfV(const Source& source, std::int64_t stride, const BlockSpec& spec, RowsAhead ahead,
              Workspace& work) {
  const DF df;
  const auto top = TopCode(spec.v_bits);
  for (int token = 0; token < kBlockTokens; token += 4) {
    for (int group = 0; group < spec.head_dim / spec.v_group_channels; ++group) {
      VF min[4], inverse[4];
      for (int i = 0; i < 4; ++i) {
        const int index = group * kBlockTokens + format::VScalePosition(token + i);
        min[i] = hn::Set(df, work.min[index]);
        inverse[i] = hn::Set(df, work.inverse[index]);
      }
      const int begin = group * spec.v_group_channels;
      for (int channel = begin; channel < begin + spec.v_group_channels; channel += kLanesF) {
        VF values[4];
        for (int i = 0; i < 4; ++i) {
          const VF value = source.Load(df, (token + i) * stride + channel);
          values[i] = hn::Mul(hn::Sub(value, min[i]), inverse[i]);
        }
        ahead.Fetch();
        StoreCodes(values, top, &work.units[channel / 4][token]);
      }
    }
  }
}

template <Raw16 kType>
bool QuantizeScalar(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const format::ScalarLayout at = format::ScalarBlock(spec.head_dim, spec.k_bits, spec.v_bits,
                                                      spec.k_group_tokens, spec.v_group_channels);
  const Raw16Source<kType> k = {rows.k}, v = {rows.v};
  Workspace work;
  const int k_groups = kBlockTokens / spec.k_group_tokens * spec.head_dim;
  if (!AllFinite<kType>(rows.k, rows.token_stride, spec.head_dim)) return false;
  RangesOfK(k, rows.token_stride, spec, work);
  if (!MakeScales(k_groups, static_cast<float>((1 << spec.k_bits) - 1), work, block + at.k_scale,
                  block + at.k_min)) {
    return false;
  }
  CodesOfK(k, rows.token_stride, spec, {rows.v, rows.token_stride, spec.head_dim}, work);
  PackBits(work, false, spec.k_bits, spec.head_dim, block + at.k_codes);

  const int v_groups = kBlockTokens * (spec.head_dim / spec.v_group_channels);
  if (!AllFinite<kType>(rows.v, rows.token_stride, spec.head_dim)) return false;
  RangesOfV(v, rows.token_stride, spec, work);
  if (!MakeScales(v_groups, static_cast<float>((1 << spec.v_bits) - 1), work, block + at.v_scale,
                  block + at.v_min)) {
    return false;
  }
  CodesOfV(v, rows.token_stride, spec, {rows.next_k, rows.token_stride, spec.head_dim}, work);
  PackBits(work, true, spec.v_bits, spec.head_dim, block + at.v_codes);
  return true;
}

bool QuantizeScalarBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return rows.type == Raw16::kFp16 ? QuantizeScalar<Raw16::kFp16>(rows, spec, block)
                                   : QuantizeScalar<Raw16::kBf16>(rows, spec, block);
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(QuantizeScalarBlock);

bool QuantizeScalarSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return HWY_DYNAMIC_DISPATCH(QuantizeScalarBlock)(rows, spec, block);
}

}  // namespace kvferry::codec::cpu
#endif
