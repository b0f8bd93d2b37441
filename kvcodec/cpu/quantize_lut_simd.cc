#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"
#include "kvcodec/lut.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/quantize_lut_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/pack_codes-inl.h"
// clang-format on

// Lut blocks: of shifted keys a zero per channel, a scale per token, the nearest level per value,
// then packed as KVB.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

bool QuantizeLutBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return ReferenceOps().quantize(rows, spec, block);
}

#else

using VI = hn::VFromD<DI>;

// Finds codes bit by bit: step i compares with the middle between the two halves of the levels that
// the first i bits leave.
struct CodeSearch {
  explicit CodeSearch(const Lut& lut) : bits(lut.bits) {
    for (int step = 0; step < bits; ++step) {
      HWY_ALIGN float entries[8] = {};
      for (int prefix = 0; prefix < 1 << step; ++prefix) {
        entries[prefix] = lut.middle(((2 * prefix + 1) << (bits - 1 - step)) - 1);
      }
      middles[step] = hn::Load(DF(), entries);
    }
  }

  HWY_INLINE VI Find(VF scaled) const {
    const DF df;
    const DI di;
    VI code = hn::Zero(di);
    for (int step = 0; step < bits; ++step) {
      const VF middle = hn::TableLookupLanes(middles[step], hn::IndicesFromVec(df, code));
      const VI above = hn::BitCast(di, hn::VecFromMask(df, hn::Gt(scaled, middle)));
      code = hn::Sub(hn::Add(code, code), above);
    }
    return code;
  }

  int bits;
  VF middles[4];
};

// MakeKeyZero of group_scale.h, eight channels at a time: fp16 to `out`, and in fp32 to work.min.
// false: one is outside fp16.
template <class Source>
bool MakeKeyZeros(const Source& source, std::int64_t stride, int head_dim, Workspace& work,
                  std::byte* out) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const hn::Rebind<std::uint16_t, DF> du16;
  const auto exponent = hn::Set(du16, 0x7c00);
  auto largest = hn::Zero(du16);
  for (int channel = 0; channel < head_dim; channel += kLanesF) {
    VF low = source.Load(df, channel), high = low;
    for (int token = 1; token < kBlockTokens; ++token) {
      const VF value = source.Load(df, token * stride + channel);
      low = hn::Min(low, value);
      high = hn::Max(high, value);
    }
    const VF middle = hn::Mul(hn::Add(low, high), hn::Set(df, 0.5f));
    auto zero = hn::BitCast(du16, hn::DemoteTo(df16, middle));
    zero = hn::IfThenZeroElse(hn::Eq(zero, hn::Set(du16, 0x8000)), zero);
    largest = hn::Max(largest, hn::And(zero, exponent));
    hn::StoreU(zero, du16, reinterpret_cast<std::uint16_t*>(out) + channel);
    hn::Store(hn::PromoteTo(df, hn::BitCast(df16, zero)), df, work.min + channel);
  }
  return hn::AllFalse(du16, hn::Eq(largest, exponent));
}

// What the scale of a token is made from, in the order of group_scale.h. row(channel): eight of its
// values.
template <class Row>
HWY_INLINE float UnitOf(const Row& row, int head_dim, LutScale scale) {
  const DF df;
  VF result = hn::Zero(df);
  for (int channel = 0; channel < head_dim; channel += kLanesF) {
    const VF value = row(channel);
    result = scale == LutScale::kLargest ? hn::Max(result, hn::Abs(value))
                                         : hn::Add(result, hn::Mul(value, value));
  }
  if (scale == LutScale::kLargest) return hn::GetLane(hn::MaxOfLanes(df, result));
  HWY_ALIGN float sums[8];
  hn::Store(result, df, sums);
  return RmsOf(sums, head_dim);
}

// Where a side of a block goes.
struct SideBytes {
  std::byte* codes;
  std::byte* scales;
  std::byte* zeros;  // of shifted keys
};

template <Raw16 kType, bool kShifted>
bool QuantizeSide(const std::uint16_t* values, std::int64_t stride, int head_dim, const Lut& lut,
                  bool is_v, const SideBytes& to) {
  if (!AllFinite<kType>(values, stride, head_dim)) return false;
  const DF df;
  const Raw16Source<kType> source = {values};
  Workspace work;
  if (kShifted && !MakeKeyZeros(source, stride, head_dim, work, to.zeros)) return false;
  const auto load = [&](int token, int channel) HWY_ATTR {
    const VF value = source.Load(df, token * stride + channel);
    return kShifted ? hn::Sub(value, hn::Load(df, work.min + channel)) : value;
  };
  for (int token = 0; token < kBlockTokens; ++token) {
    const auto row = [&](int channel) HWY_ATTR { return load(token, channel); };
    const TokenScale scale = MakeTokenScale(UnitOf(row, head_dim, lut.scale));
    if (!scale.fits) return false;
    StoreU16(to.scales, is_v ? format::VScalePosition(token) : format::KScalePosition(token),
             scale.scale);
    work.inverse[token] = scale.inverse;
  }
  const CodeSearch search(lut);
  for (int token = 0; token < kBlockTokens; token += 4) {
    for (int channel = 0; channel < head_dim; channel += kLanesF) {
      VI found[4];
      for (int i = 0; i < 4; ++i) {
        const VF value = load(token + i, channel);
        found[i] = search.Find(hn::Mul(value, hn::Set(df, work.inverse[token + i])));
      }
      StoreUnits(JoinCodes(found), &work.units[channel / 4][token]);
    }
  }
  PackBits(work, is_v, lut.bits, head_dim, to.codes);
  return true;
}

template <Raw16 kType>
bool QuantizeLut(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const Lut& lut = *FindLut(spec.table);
  const int d = spec.head_dim;
  const format::LutLayout at = format::LutBlock(d, lut.bits, lut.shifted_keys);
  const SideBytes k = {block + at.k_codes, block + at.k_scale, block + at.k_zero};
  const SideBytes v = {block + at.v_codes, block + at.v_scale, nullptr};
  std::fill(k.zeros, block + at.v_codes, std::byte{0});
  const auto quantize_k = lut.shifted_keys ? QuantizeSide<kType, true> : QuantizeSide<kType, false>;
  return quantize_k(rows.k, rows.token_stride, d, lut, false, k) &&
         QuantizeSide<kType, false>(rows.v, rows.token_stride, d, lut, true, v);
}

bool QuantizeLutBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return rows.type == Raw16::kFp16 ? QuantizeLut<Raw16::kFp16>(rows, spec, block)
                                   : QuantizeLut<Raw16::kBf16>(rows, spec, block);
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(QuantizeLutBlock);

bool QuantizeLutSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return HWY_DYNAMIC_DISPATCH(QuantizeLutBlock)(rows, spec, block);
}

}  // namespace kvferry::codec::cpu
#endif
