#include "bench/quality/softmax_sums.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/quality/softmax_sums.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h, which it is written with.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvferry::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F64 = hn::ScalableTag<double>;
using F32 = hn::Rebind<float, F64>;

// `count` values from `from` on as doubles; what is past them is `fill`.
hn::Vec<F64> Load(const float* from, std::size_t count, float fill) {
  const F64 d;
  const F32 d32;
  if (count >= hn::Lanes(d)) return hn::PromoteTo(d, hn::LoadU(d32, from));
  const auto mask = hn::FirstN(d32, count);
  return hn::PromoteTo(d,
                       hn::IfThenElse(mask, hn::MaskedLoad(mask, d32, from), hn::Set(d32, fill)));
}

// Far below any lead: no weight.
constexpr float kNoLogit = -1e30f;

double SumExp(std::span<const float> logits, double lead) {
  const F64 d;
  const auto top = hn::Set(d, lead);
  auto sum = hn::Zero(d);
  for (std::size_t i = 0; i < logits.size(); i += hn::Lanes(d)) {
    const auto x = Load(logits.data() + i, logits.size() - i, kNoLogit);
    sum = hn::Add(sum, hn::Exp(d, hn::Sub(x, top)));
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

WeightedSums SumDifferences(std::span<const float> exact, std::span<const float> tested,
                            double lead) {
  const F64 d;
  const auto top = hn::Set(d, lead);
  auto weights = hn::Zero(d), differences = hn::Zero(d);
  for (std::size_t i = 0; i < exact.size(); i += hn::Lanes(d)) {
    const auto x = Load(exact.data() + i, exact.size() - i, kNoLogit);
    const auto y = Load(tested.data() + i, exact.size() - i, kNoLogit);
    const auto weight = hn::Exp(d, hn::Sub(x, top));
    weights = hn::Add(weights, weight);
    differences = hn::MulAdd(weight, hn::Sub(x, y), differences);
  }
  return {hn::GetLane(hn::SumOfLanes(d, weights)), hn::GetLane(hn::SumOfLanes(d, differences))};
}

}  // namespace kvferry::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::bench {

HWY_EXPORT(SumExp);
HWY_EXPORT(SumDifferences);

double SumExp(std::span<const float> logits, double lead) {
  return HWY_DYNAMIC_DISPATCH(SumExp)(logits, lead);
}

WeightedSums SumDifferences(std::span<const float> exact, std::span<const float> tested,
                            double lead) {
  return HWY_DYNAMIC_DISPATCH(SumDifferences)(exact, tested, lead);
}

}  // namespace kvferry::bench
#endif  // HWY_ONCE
