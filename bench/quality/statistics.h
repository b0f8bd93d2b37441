#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvferry::bench {

// A value with its 95 % interval.
struct Interval {
  double value = 0, low = 0, high = 0;
};

// Neighbouring positions of a text are not independent: whole stretches are drawn, not positions.
inline constexpr int kStretchPositions = 128;
inline constexpr int kResamples = 2000;

// The mean of all values with its block-bootstrap percentile interval.
//   series: of passages; they are cut into stretches of `stretch` values, the last of each may be
//   shorter. The same seed draws the same stretches. At least one value.
Interval BootstrapMean(std::span<const std::vector<double>> series, int stretch,
                       std::uint64_t seed);

// exp of all three: a perplexity from a mean log-likelihood, a ratio from a mean difference.
Interval Exp(const Interval& interval);

// The smallest value that at least the fraction `q` of all values does not exceed (nearest rank).
// At least one value.
double Quantile(std::vector<double> values, double q);

}  // namespace kvferry::bench
