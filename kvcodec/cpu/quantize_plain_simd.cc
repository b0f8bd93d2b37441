#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/cpu/simd.h"
#include "kvcodec/e4m3.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/quantize_plain_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/simd-inl.h"
// clang-format on

// Blocks whose values stand in token order, whole elements each: raw16, int8 and fp8.
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

// A kind of byte codes: the scale for the largest magnitude of a token, and codes of value / scale.
struct Int8Codes {
  static TokenScale ScaleOf(float largest) { return MakeTokenScale(largest / 127.0f); }
  static HWY_INLINE void Store(VF scaled, std::byte* out) {
    const DF df;
    const hn::Rebind<std::int8_t, DF> d8;
    const VF code = hn::Min(hn::Max(scaled, hn::Set(df, -127.0f)), hn::Set(df, 127.0f));
    hn::StoreU(hn::DemoteTo(d8, RoundToInt(code)), d8, reinterpret_cast<std::int8_t*>(out));
  }
};

struct Fp8Codes {
  static TokenScale ScaleOf(float largest) { return MakeTokenScale(largest / kE4m3Max); }
  // E4m3FromFloat, eight at a time.
  static HWY_INLINE void Store(VF scaled, std::byte* out) {
    const DF df;
    const hn::RebindToUnsigned<DF> du;
    const hn::RebindToSigned<DF> di;
    const hn::Rebind<std::uint8_t, DF> d8;
    const VF magnitude = hn::Min(hn::Abs(scaled), hn::Set(df, kE4m3Max));
    const auto bits = hn::BitCast(du, magnitude);
    const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1u));
    const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7ffffu)), odd);
    const auto normal = hn::Sub(hn::ShiftRight<20>(rounded), hn::Set(du, 120u << 3));
    const auto tiny = hn::BitCast(du, RoundToInt(hn::Mul(magnitude, hn::Set(df, 0x1p9f))));
    const auto is_tiny = hn::RebindMask(du, hn::Lt(magnitude, hn::Set(df, kE4m3LeastNormal)));
    const auto code = hn::IfThenElse(is_tiny, tiny, normal);
    const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(du, scaled)), hn::Set(du, 0x80u));
    const auto with_sign = hn::IfThenZeroElse(hn::Eq(code, hn::Zero(du)), hn::Or(code, sign));
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di, with_sign)), d8,
               reinterpret_cast<std::uint8_t*>(out));
  }
};

template <class Codes, Raw16 kType>
bool QuantizeSide(const std::uint16_t* values, std::int64_t stride, int head_dim, std::byte* codes,
                  std::byte* scales) {
  if (!AllFinite<kType>(values, stride, head_dim)) return false;
  const DF df;
  const Raw16Source<kType> source = {values};
  for (int token = 0; token < kBlockTokens; ++token) {
    VF largest0 = hn::Zero(df), largest1 = hn::Zero(df);
    for (int channel = 0; channel < head_dim; channel += 2 * kLanesF) {
      const std::int64_t at = token * stride + channel;
      largest0 = hn::Max(largest0, hn::Abs(source.Load(df, at)));
      largest1 = hn::Max(largest1, hn::Abs(source.Load(df, at + kLanesF)));
    }
    const TokenScale scale =
        Codes::ScaleOf(hn::GetLane(hn::MaxOfLanes(df, hn::Max(largest0, largest1))));
    if (!scale.fits) return false;
    StoreU16(scales, token, scale.scale);
    const VF inverse = hn::Set(df, scale.inverse);
    for (int channel = 0; channel < head_dim; channel += kLanesF) {
      Codes::Store(hn::Mul(source.Load(df, token * stride + channel), inverse),
                   codes + token * head_dim + channel);
    }
  }
  return true;
}

template <class Codes, Raw16 kType>
bool QuantizeBytes(const HeadRows& rows, const format::TokenScaleLayout& at, int head_dim,
                   std::byte* block) {
  return QuantizeSide<Codes, kType>(rows.k, rows.token_stride, head_dim, block + at.k_codes,
                                    block + at.k_scale) &&
         QuantizeSide<Codes, kType>(rows.v, rows.token_stride, head_dim, block + at.v_codes,
                                    block + at.v_scale);
}

template <class Codes>
bool QuantizeBytes(const HeadRows& rows, const format::TokenScaleLayout& at, int head_dim,
                   std::byte* block) {
  return rows.type == Raw16::kFp16 ? QuantizeBytes<Codes, Raw16::kFp16>(rows, at, head_dim, block)
                                   : QuantizeBytes<Codes, Raw16::kBf16>(rows, at, head_dim, block);
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
  const int d = spec.head_dim;
  if (spec.kind == BlockKind::kInt8) {
    return QuantizeBytes<Int8Codes>(rows, format::Int8Block(d), d, block);
  }
  if (spec.kind == BlockKind::kFp8) {
    return QuantizeBytes<Fp8Codes>(rows, format::Fp8Block(d), d, block);
  }
  const format::Raw16Layout at = format::Raw16Block(d);
  return CopyRaw16Side(rows.k, rows.token_stride, rows.type, d, block + at.k) &&
         CopyRaw16Side(rows.v, rows.token_stride, rows.type, d, block + at.v);
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
