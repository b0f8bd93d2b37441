#include "bench/quality/compare.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace kvferry::bench {
namespace {

TEST(CompareTest, ValuesByHand) {
  // p = (1/4, 3/4), q = (1/2, 1/2).
  const std::vector<float> exact = {0, std::log(3.0f)}, tested = {1, 1};
  const Comparison one = Compare(exact, tested, 1);
  EXPECT_NEAR(one.nll, std::log(2.0), 1e-12);
  EXPECT_NEAR(one.kl, 0.25 * std::log(0.5) + 0.75 * std::log(1.5), 1e-7);
  EXPECT_FALSE(one.agrees);  // the first of two equal ones is token 0
  EXPECT_TRUE(one.sure);     // log 3 is more than the margin
  // The other way round it is another number.
  EXPECT_NEAR(Compare(tested, exact, 0).kl, 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3), 1e-7);
  EXPECT_NEAR(NegativeLogLikelihood(exact, 1), std::log(4.0 / 3), 1e-7);
}

TEST(CompareTest, NothingIsTruncated) {
  // Half of the mass is on 1,000 tokens that nobody would look at.
  std::vector<float> exact(1001, 0), tested(1001, 0);
  exact[0] = tested[0] = std::log(1000.0f);
  for (std::size_t i = 1; i < tested.size(); ++i) tested[i] = i % 2 == 0 ? 0.5f : -0.5f;
  const double norm = 1000 + 500 * (std::exp(0.5) + std::exp(-0.5));
  EXPECT_NEAR(Compare(exact, tested, 0).kl, std::log(norm / 2000), 1e-6);
}

TEST(CompareTest, EqualDistributionsHaveNoDivergence) {
  const std::vector<float> exact = {3, -2, 0.5f, 90};
  std::vector<float> shifted = exact;
  for (float& x : shifted) x += 4;
  for (const auto& tested : {exact, shifted}) {
    const Comparison one = Compare(exact, tested, 3);
    EXPECT_EQ(one.kl, 0);
    EXPECT_NEAR(one.nll, 0, 1e-12);
    EXPECT_TRUE(one.agrees);
  }
}

// Vector instructions take some logits at a time, whatever their number is.
TEST(CompareTest, AnyNumberOfLogitsIsSummedUp) {
  std::vector<float> exact, tested;
  for (int count = 1; count <= 40; ++count) {
    exact.push_back(static_cast<float>(std::sin(count) * 9));
    tested.push_back(static_cast<float>(std::cos(count * 3) * 9));
    double p_sum = 0, q_sum = 0, kl = 0;
    for (int i = 0; i < count; ++i) p_sum += std::exp(static_cast<double>(exact[i]));
    for (int i = 0; i < count; ++i) q_sum += std::exp(static_cast<double>(tested[i]));
    for (int i = 0; i < count; ++i) {
      const double p = std::exp(static_cast<double>(exact[i])) / p_sum;
      kl += p * std::log(p / (std::exp(static_cast<double>(tested[i])) / q_sum));
    }
    if (count == 1) continue;
    const Comparison one = Compare(exact, tested, count - 1);
    EXPECT_NEAR(one.kl, kl, 1e-12 + 1e-12 * kl) << count;
    EXPECT_NEAR(one.nll, std::log(q_sum) - tested.back(), 1e-12) << count;
  }
}

TEST(CompareTest, ANarrowLeadIsNotSure) {
  const std::vector<float> exact = {1, 1.05f, 0};
  const Comparison one = Compare(exact, exact, 0);
  EXPECT_TRUE(one.agrees);
  EXPECT_FALSE(one.sure);
}

TEST(CompareTest, TheFiveLikeliestOfBoth) {
  const std::vector<float> exact = {9, 8, 7, 6, 5, 4, 3};
  EXPECT_EQ(Compare(exact, exact, 0).top5, 5);
  EXPECT_EQ(Compare(exact, std::vector<float>{1, 2, 3, 4, 5, 6, 7}, 0).top5, 3);
  EXPECT_EQ(Compare(exact, std::vector<float>{5, 9, 6, 8, 7, 1, 1}, 0).top5, 5);
  // Of equal ones the first are taken.
  EXPECT_EQ(Compare(exact, std::vector<float>(7, 1), 0).top5, 5);
  EXPECT_EQ(Compare(std::vector<float>{1, 2}, std::vector<float>{2, 1}, 0).top5, 2);
}

TEST(CompareTest, WhatIsNoNumberGivesNone) {
  const std::vector<float> exact = {1, 2};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(std::isfinite(Compare(exact, std::vector<float>{nan, 1}, 0).kl));
  EXPECT_FALSE(std::isfinite(Compare(exact, std::vector<float>{1, nan}, 0).kl));
}

}  // namespace
}  // namespace kvferry::bench
