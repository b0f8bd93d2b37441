// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_SIMD_INL_H_
#undef KVFERRY_KVCODEC_CPU_SIMD_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_SIMD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kvcodec/codec.h"
#include "kvcodec/cpu/simd_targets.h"
#include "kvcodec/kv_view.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Loads that give fp32. A source is a type with Load(D df, index) over its own elements.
template <Raw16 kType>
struct Raw16Source {
  const std::uint16_t* values;

  template <class D>
  HWY_INLINE hn::VFromD<D> Load(D df, std::int64_t index) const {
    const hn::Rebind<std::uint16_t, D> d16;
    const auto bits = hn::LoadU(d16, values + index);
    if constexpr (kType == Raw16::kFp16) {
      return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
    } else {
      const hn::RebindToUnsigned<D> d32;
      return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
    }
  }
};

// Nearest, ties to even, of values that fit. (NearestInt of Highway also repairs what does not
// fit.)
HWY_INLINE hn::VFromD<hn::CappedTag<std::int32_t, 8>> RoundToInt(
    hn::VFromD<hn::CappedTag<float, 8>> v) {
  return hn::VFromD<hn::CappedTag<std::int32_t, 8>>{_mm256_cvtps_epi32(v.raw)};
}
#if HWY_MAX_BYTES >= 64
HWY_INLINE hn::VFromD<hn::CappedTag<std::int32_t, 16>> RoundToInt(
    hn::VFromD<hn::CappedTag<float, 16>> v) {
  return hn::VFromD<hn::CappedTag<std::int32_t, 16>>{_mm512_cvtps_epi32(v.raw)};
}
#endif

struct Int8Source {
  const std::int8_t* values;

  template <class D>
  HWY_INLINE hn::VFromD<D> Load(D df, std::int64_t index) const {
    const hn::Rebind<std::int8_t, D> d8;
    const hn::RebindToSigned<D> d32;
    return hn::ConvertTo(df, hn::PromoteTo(d32, hn::LoadU(d8, values + index)));
  }
};

// E4M3 numbers: as fp16 with the exponent of its bias, which is 8 less than its own.
struct Fp8Source {
  const std::uint8_t* values;

  template <class D>
  HWY_INLINE hn::VFromD<D> Load(D df, std::int64_t index) const {
    const hn::Rebind<std::uint8_t, D> d8;
    const hn::Rebind<std::uint16_t, D> d16;
    const auto code = hn::PromoteTo(d16, hn::LoadU(d8, values + index));
    const auto sign = hn::ShiftLeft<8>(hn::And(code, hn::Set(d16, 0x80)));
    const auto rest = hn::ShiftLeft<7>(hn::And(code, hn::Set(d16, 0x7f)));
    const auto half = hn::BitCast(hn::Rebind<hwy::float16_t, D>(), hn::Or(sign, rest));
    return hn::Mul(hn::PromoteTo(df, half), hn::Set(df, 256.0f));
  }
};

// Whether all values of one side of a block are finite.
template <Raw16 kType>
HWY_INLINE bool AllFinite(const std::uint16_t* values, std::int64_t stride, int head_dim) {
  const hn::CappedTag<std::uint16_t, 16> d16;
  const auto magnitude = hn::Set(d16, 0x7fff);
  auto largest = hn::Zero(d16);
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int channel = 0; channel < head_dim; channel += 16) {
      const auto bits = hn::LoadU(d16, values + token * stride + channel);
      largest = hn::Max(largest, hn::And(bits, magnitude));
    }
  }
  const auto infinity = hn::Set(d16, kType == Raw16::kFp16 ? 0x7c00 : 0x7f80);
  return hn::AllFalse(d16, hn::Eq(hn::Max(largest, infinity), largest));
}

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
