#include "bench/quality/compare.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "bench/quality/softmax_sums.h"

namespace kvferry::bench {
namespace {

// log of the sum of exp(logits), the largest of which is `top`.
double LogSumExp(std::span<const float> logits, double top) {
  return top + std::log(SumExp(logits, top));
}

constexpr std::int32_t kNone = -1;

// The five likeliest tokens, likeliest first; of equal ones the first. kNone after the last.
std::array<std::int32_t, 5> TopFive(std::span<const float> logits) {
  std::array<std::int32_t, 5> top;
  top.fill(kNone);
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    return b == kNone || !(logits[a] <= logits[b]);  // what is no number comes first
  };
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto token = static_cast<std::int32_t>(i);
    if (!likelier(token, top.back())) continue;
    std::size_t at = top.size() - 1;
    for (; at > 0 && likelier(token, top[at - 1]); --at) top[at] = top[at - 1];
    top[at] = token;
  }
  return top;
}

}  // namespace

Comparison Compare(std::span<const float> exact, std::span<const float> tested, std::int32_t next) {
  const std::array<std::int32_t, 5> exact_top = TopFive(exact), tested_top = TopFive(tested);
  const double exact_lead = exact[exact_top[0]];
  const WeightedSums sums = SumDifferences(exact, tested, exact_lead);
  const double exact_norm = exact_lead + std::log(sums.weights);
  const double tested_norm = LogSumExp(tested, tested[tested_top[0]]);
  Comparison compared{.nll = tested_norm - tested[next],
                      .kl = sums.differences / sums.weights - exact_norm + tested_norm,
                      .agrees = exact_top[0] == tested_top[0],
                      .sure = exact_lead - exact[exact_top[1]] > kSureMargin};
  for (const std::int32_t token : exact_top) {
    if (token == kNone) break;
    compared.top5 += std::find(tested_top.begin(), tested_top.end(), token) != tested_top.end();
  }
  return compared;
}

double NegativeLogLikelihood(std::span<const float> logits, std::int32_t next) {
  return LogSumExp(logits, logits[LikeliestToken(logits)]) - logits[next];
}

std::int32_t LikeliestToken(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace kvferry::bench
