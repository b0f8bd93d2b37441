#include "bench/quality/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>

namespace kvferry::bench {
namespace {

struct Stretch {
  double sum = 0;
  std::size_t count = 0;
};

std::vector<Stretch> Cut(std::span<const std::vector<double>> series, int stretch) {
  std::vector<Stretch> stretches;
  for (const std::vector<double>& values : series) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i % static_cast<std::size_t>(stretch) == 0) stretches.emplace_back();
      stretches.back().sum += values[i];
      ++stretches.back().count;
    }
  }
  return stretches;
}

}  // namespace

Interval BootstrapMean(std::span<const std::vector<double>> series, int stretch,
                       std::uint64_t seed) {
  const std::vector<Stretch> stretches = Cut(series, stretch);
  Stretch all;
  for (const Stretch& one : stretches) all = {all.sum + one.sum, all.count + one.count};
  std::mt19937_64 random(seed);
  std::vector<double> means;
  means.reserve(kResamples);
  for (int resample = 0; resample < kResamples; ++resample) {
    Stretch drawn;
    for (std::size_t i = 0; i < stretches.size(); ++i) {
      // Of the upper 32 bits, not with a standard distribution: those differ between libraries.
      const Stretch& one = stretches[((random() >> 32) * stretches.size()) >> 32];
      drawn = {drawn.sum + one.sum, drawn.count + one.count};
    }
    means.push_back(drawn.sum / static_cast<double>(drawn.count));
  }
  return {.value = all.sum / static_cast<double>(all.count),
          .low = Quantile(means, 0.025),
          .high = Quantile(means, 0.975)};
}

Interval Exp(const Interval& interval) {
  return {std::exp(interval.value), std::exp(interval.low), std::exp(interval.high)};
}

double Quantile(std::vector<double> values, double q) {
  const auto rank = static_cast<std::ptrdiff_t>(std::ceil(q * static_cast<double>(values.size())));
  const auto at = values.begin() + std::max<std::ptrdiff_t>(0, rank - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace kvferry::bench
