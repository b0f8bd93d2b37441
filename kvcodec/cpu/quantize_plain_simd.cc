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
#define HWY_TARGET_INCLUDE "kvcodec/cpu/quantize_plain_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/simd-inl.h"
// clang-format on

// Blocks whose values stand in token order, whole elements each: raw16 and int8.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

bool QuantizePlainBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return ReferenceOps().quantize(rows, spec, block);
}

#else

using DF = hn::CappedTag<float, 8>;
using VF = hn::VFromD<DF>;
constexpr int kLanesF = hn::MaxLanes(DF());

template <Raw16 kType>
bool QuantizeInt8Side(const std::uint16_t* values, std::int64_t stride, int head_dim,
                      std::byte* codes, std::byte* scales) {
  if (!AllFinite<kType>(values, stride, head_dim)) return false;
  const DF df;
  const hn::Rebind<std::int8_t, DF> d8;
  const Raw16Source<kType> source = {values};
  const VF top = hn::Set(df, 127.0f), bottom = hn::Set(df, -127.0f);
  for (int token = 0; token < kBlockTokens; ++token) {
    VF largest0 = hn::Zero(df), largest1 = hn::Zero(df);
    for (int channel = 0; channel < head_dim; channel += 2 * kLanesF) {
      const std::int64_t at = token * stride + channel;
      largest0 = hn::Max(largest0, hn::Abs(source.Load(df, at)));
      largest1 = hn::Max(largest1, hn::Abs(source.Load(df, at + kLanesF)));
    }
    const TokenScale scale =
        MakeTokenScale(hn::GetLane(hn::MaxOfLanes(df, hn::Max(largest0, largest1))) / 127.0f);
    if (!scale.fits) return false;
    StoreU16(scales, token, scale.scale);
    const VF inverse = hn::Set(df, scale.inverse);
    for (int channel = 0; channel < head_dim; channel += kLanesF) {
      const VF code = hn::Mul(source.Load(df, token * stride + channel), inverse);
      const auto rounded = RoundToInt(hn::Min(hn::Max(code, bottom), top));
      hn::StoreU(hn::DemoteTo(d8, rounded), d8,
                 reinterpret_cast<std::int8_t*>(codes) + token * head_dim + channel);
    }
  }
  return true;
}

template <Raw16 kType>
bool QuantizeInt8(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const format::Int8Layout at = format::Int8Block(spec.head_dim);
  return QuantizeInt8Side<kType>(rows.k, rows.token_stride, spec.head_dim, block + at.k_codes,
                                 block + at.k_scale) &&
         QuantizeInt8Side<kType>(rows.v, rows.token_stride, spec.head_dim, block + at.v_codes,
                                 block + at.v_scale);
}

bool CopyRaw16Side(const std::uint16_t* values, std::int64_t stride, Raw16 type, int head_dim,
                   std::byte* out) {
  const hn::CappedTag<std::uint16_t, 16> d16;
  const auto exponent = hn::Set(d16, type == Raw16::kFp16 ? 0x7c00 : 0x7f80);
  auto full = hn::Zero(d16);
  for (int token = 0; token < kBlockTokens; ++token) {
    for (std::size_t channel = 0; channel < static_cast<std::size_t>(head_dim);
         channel += hn::Lanes(d16)) {
      const auto bits = hn::LoadU(d16, values + token * stride + channel);
      full = hn::Or(full, hn::VecFromMask(d16, hn::Eq(hn::And(bits, exponent), exponent)));
      hn::StoreU(bits, d16,
                 reinterpret_cast<std::uint16_t*>(out) +
                     static_cast<std::ptrdiff_t>(token) * head_dim + channel);
    }
  }
  return hn::AllTrue(d16, hn::Eq(full, hn::Zero(d16)));
}

bool QuantizePlainBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  if (spec.kind == BlockKind::kRaw16) {
    const format::Raw16Layout at = format::Raw16Block(spec.head_dim);
    return CopyRaw16Side(rows.k, rows.token_stride, rows.type, spec.head_dim, block + at.k) &&
           CopyRaw16Side(rows.v, rows.token_stride, rows.type, spec.head_dim, block + at.v);
  }
  return rows.type == Raw16::kFp16 ? QuantizeInt8<Raw16::kFp16>(rows, spec, block)
                                   : QuantizeInt8<Raw16::kBf16>(rows, spec, block);
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(QuantizePlainBlock);

bool QuantizePlainSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return HWY_DYNAMIC_DISPATCH(QuantizePlainBlock)(rows, spec, block);
}

}  // namespace kvferry::codec::cpu
#endif
