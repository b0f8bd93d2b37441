// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_SOFTMAX_INL_H_
#undef KVFERRY_KVCODEC_CPU_SOFTMAX_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_SOFTMAX_INL_H_
#endif

#include <cmath>

#include "hwy/highway.h"
#include "kvcodec/cpu/simd-inl.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 2^x for x <= 0, relative error below 2e-7; x below -126 counts as -126, NaN stays NaN.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V Exp2(D df, V x) {
  const hn::RebindToSigned<D> di;
  x = hn::Max(hn::Set(df, -126.0f), x);
  const auto whole = RoundToInt(x);
  const V f = hn::Sub(x, hn::ConvertTo(df, whole));  // [-0.5, 0.5]
  // ln(2)^n / n!
  V y = hn::Set(df, 1.54035304e-4f);
  y = hn::MulAdd(y, f, hn::Set(df, 1.33335581e-3f));
  y = hn::MulAdd(y, f, hn::Set(df, 9.61812911e-3f));
  y = hn::MulAdd(y, f, hn::Set(df, 5.55041087e-2f));
  y = hn::MulAdd(y, f, hn::Set(df, 2.40226507e-1f));
  y = hn::MulAdd(y, f, hn::Set(df, 6.93147181e-1f));
  y = hn::MulAdd(y, f, hn::Set(df, 1.0f));
  return hn::BitCast(df, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(whole)));
}

// Turns scores[0, count) into 2^(score - m) with the running maximum m, adds their sum to l, and
// returns by how much what was accumulated before must shrink. The array has room for a whole
// vector at its end.
HWY_INLINE float SoftmaxStep(float* HWY_RESTRICT scores, int count, float& m, float& l) {
  const hn::CappedTag<float, 16> df;
  const int lanes = static_cast<int>(hn::Lanes(df));
  for (int i = count; i % lanes != 0; ++i) scores[i] = -INFINITY;
  auto top = hn::Load(df, scores);
  for (int i = lanes; i < count; i += lanes) top = hn::Max(top, hn::Load(df, scores + i));
  const float largest = hn::GetLane(hn::MaxOfLanes(df, top));
  const float new_m = largest > m ? largest : m;
  const auto shift = hn::Set(df, new_m);
  auto sum = hn::Zero(df);
  for (int i = 0; i < count; i += lanes) {
    const auto p = Exp2(df, hn::Sub(hn::Load(df, scores + i), shift));
    hn::Store(p, df, scores + i);
    sum = hn::Add(sum, p);
  }
  const float decay = m == new_m ? 1.0f : std::exp2(m - new_m);
  m = new_m;
  l = l * decay + hn::GetLane(hn::SumOfLanes(df, sum));
  return decay;
}

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
