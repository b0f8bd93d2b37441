#include "bench/quality/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace kvferry::bench {
namespace {

using Series = std::vector<std::vector<double>>;

TEST(QuantileTest, NearestRank) {
  std::vector<double> hundred(100);
  std::iota(hundred.rbegin(), hundred.rend(), 1);
  EXPECT_EQ(Quantile(hundred, 0), 1);
  EXPECT_EQ(Quantile(hundred, 0.5), 50);
  EXPECT_EQ(Quantile(hundred, 0.99), 99);
  EXPECT_EQ(Quantile(hundred, 1), 100);
  EXPECT_EQ(Quantile({7}, 0.99), 7);
  EXPECT_EQ(Quantile({3, 1}, 0.5), 1);
  EXPECT_EQ(Quantile({3, 1}, 0.51), 3);
}

TEST(BootstrapTest, TheMeanIsOfAllValuesNotOfStretches) {
  const Interval mean = BootstrapMean(Series{{1, 1, 3}, {5}}, 2, 1);
  EXPECT_DOUBLE_EQ(mean.value, 2.5);
  EXPECT_LE(mean.low, mean.value);
  EXPECT_GE(mean.high, mean.value);
}

TEST(BootstrapTest, OneStretchHasNoSpread) {
  const Interval mean = BootstrapMean(Series{{0, 1, 2, 5}}, 4, 1);
  EXPECT_EQ(mean.low, 2);
  EXPECT_EQ(mean.high, 2);
}

TEST(BootstrapTest, TwoStretches) {
  // The mean of two draws of {0, 1} is 0, 1/2 or 1 with 1/4, 1/2 and 1/4.
  const Interval mean = BootstrapMean(Series{{0, 0}, {1, 1}}, 128, 3);
  EXPECT_EQ(mean.value, 0.5);
  EXPECT_EQ(mean.low, 0);
  EXPECT_EQ(mean.high, 1);
}

TEST(BootstrapTest, TheIntervalIsThatOfTheMean) {
  // 400 independent values of variance 1/4: 1.96 standard errors of the mean are 0.049.
  std::vector<double> values(400);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = i % 2 == 0 ? 0 : 1;
  const Interval mean = BootstrapMean(Series{values}, 1, 7);
  EXPECT_NEAR(mean.low, 0.5 - 0.049, 0.006);
  EXPECT_NEAR(mean.high, 0.5 + 0.049, 0.006);
}

TEST(BootstrapTest, TheSeedDecides) {
  std::vector<double> values(50);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<double>(i * i));
  const auto low = [&](std::uint64_t seed) { return BootstrapMean(Series{values}, 4, seed).low; };
  EXPECT_EQ(low(5), low(5));
  EXPECT_NE(low(5), low(6));
}

TEST(BootstrapTest, ExpOfAnInterval) {
  const Interval interval = Exp({.value = 0, .low = std::log(0.5), .high = std::log(3.0)});
  EXPECT_DOUBLE_EQ(interval.value, 1);
  EXPECT_DOUBLE_EQ(interval.low, 0.5);
  EXPECT_DOUBLE_EQ(interval.high, 3);
}

}  // namespace
}  // namespace kvferry::bench
