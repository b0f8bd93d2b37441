#include "bench/quality/compare.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace kvferry::bench {
namespace {

// log of the sum of exp(logits).
double LogSumExp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - top);
  return top + std::log(sum);
}

double LeadOf(std::span<const float> logits, std::int32_t token) {
  float second = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (static_cast<std::int32_t>(i) != token) second = std::max(second, logits[i]);
  }
  return static_cast<double>(logits[token]) - second;
}

}  // namespace

Comparison Compare(std::span<const float> exact, std::span<const float> tested, std::int32_t next) {
  const double exact_norm = LogSumExp(exact), tested_norm = LogSumExp(tested);
  double mean_difference = 0;  // of logits, under the exact model
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double x = exact[i];
    mean_difference += std::exp(x - exact_norm) * (x - tested[i]);
  }
  const std::int32_t likeliest = LikeliestToken(exact);
  return {.nll = tested_norm - tested[next],
          .kl = mean_difference - exact_norm + tested_norm,
          .agrees = likeliest == LikeliestToken(tested),
          .sure = LeadOf(exact, likeliest) > kSureMargin};
}

double NegativeLogLikelihood(std::span<const float> logits, std::int32_t next) {
  return LogSumExp(logits) - logits[next];
}

std::int32_t LikeliestToken(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace kvferry::bench
