#include "calibrate/kmeans.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <limits>
#include <random>

namespace kvferry::calibrate {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatNear;

using Vectors = std::vector<float>;

// Sixteen clusters of two channels, 100 vectors each, 0.05 wide, on a grid of 10.
struct Planted {
  Planted() {
    std::mt19937_64 random(7);
    std::normal_distribution<float> spread(0, 0.05f);
    for (int i = 0; i < 1600; ++i) {
      vectors.push_back(static_cast<float>(10 * (i % 4)) + spread(random));
      vectors.push_back(static_cast<float>(10 * (i / 4 % 4)) + spread(random));
      weights.push_back(1);
    }
  }
  Vectors vectors, weights;
};

// Largest distance of a centroid's channel from a multiple of 10.
float FarthestFromGrid(const Vectors& centroids) {
  float farthest = 0;
  for (const float value : centroids) {
    farthest = std::max(farthest, std::abs(value - 10 * std::round(value / 10)));
  }
  return farthest;
}

TEST(KMeansTest, FindsPlantedClusters) {
  const Planted planted;
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    const auto found = WeightedKMeans(planted.vectors, 2, planted.weights,
                                      {.centroids = 16, .iterations = 10, .seed = seed});
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->size(), 32u);
    // Two centroids in one cluster leave another without, and one between it and its neighbour.
    EXPECT_LT(FarthestFromGrid(*found), 0.05) << seed;
  }
}

TEST(KMeansTest, SeedsAloneLieInAllClusters) {
  const Planted planted;
  for (const std::uint64_t seed : {1, 2, 3, 4, 5}) {
    const Vectors found = WeightedKMeans(planted.vectors, 2, planted.weights,
                                         {.centroids = 16, .iterations = 0, .seed = seed})
                              .value();
    std::vector<std::pair<long, long>> cells;
    for (std::size_t i = 0; i < found.size(); i += 2) {
      cells.emplace_back(std::lround(found[i] / 10), std::lround(found[i + 1] / 10));
    }
    std::sort(cells.begin(), cells.end());
    EXPECT_EQ(std::unique(cells.begin(), cells.end()), cells.end()) << seed;
  }
}

TEST(KMeansTest, HeavyVectorsPullTheirCentroid) {
  const Vectors vectors = {0, 1, 100, 103};
  const auto at = [&](const Vectors& weights) {
    Vectors found = WeightedKMeans(vectors, 1, weights, {.centroids = 2}).value();
    std::sort(found.begin(), found.end());
    return found;
  };
  EXPECT_THAT(at({1, 1, 1, 1}), ElementsAre(FloatNear(0.5f, 1e-5), FloatNear(101.5f, 1e-4)));
  EXPECT_THAT(at({3, 1, 1, 2}), ElementsAre(FloatNear(0.25f, 1e-5), FloatNear(102.0f, 1e-4)));
  // Their scale is of no account, however small.
  EXPECT_THAT(at({3e-20f, 1e-20f, 1e-20f, 2e-20f}),
              ElementsAre(FloatNear(0.25f, 1e-5), FloatNear(102.0f, 1e-4)));
  // So heavy that it has a centroid of its own, and the others one together.
  EXPECT_THAT(at({1e9f, 1e9f, 1, 1}), ElementsAre(FloatNear(0.0f, 1e-3), FloatNear(1.0f, 1e-3)));
}

TEST(KMeansTest, WhatHasNoWeightDoesNotCount) {
  const Vectors found =
      WeightedKMeans(Vectors{5, 7, 1000, 2000}, 1, Vectors{1, 1, 0, 0}, {.centroids = 2}).value();
  EXPECT_THAT(Vectors({std::min(found[0], found[1]), std::max(found[0], found[1])}),
              ElementsAre(5, 7));
  // Where nobody has any, all do.
  EXPECT_THAT(WeightedKMeans(Vectors{5, 7, 9, 11}, 1, Vectors(4), {.centroids = 1}).value(),
              ElementsAre(FloatNear(8, 1e-5)));
}

TEST(KMeansTest, TheSameSeedGivesTheSame) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  Vectors vectors(4 * 3000), weights(3000);
  for (float& value : vectors) value = normal(random);
  for (float& weight : weights) weight = std::exp(3 * normal(random));
  const auto run = [&](std::uint64_t seed, int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    auto found = WeightedKMeans(vectors, 4, weights, {.centroids = 64, .seed = seed}).value();
    omp_set_num_threads(before);
    return found;
  };
  const Vectors first = run(1, 1);
  EXPECT_EQ(run(1, 1), first);
  EXPECT_EQ(run(1, 4), first);
  EXPECT_NE(run(2, 1), first);
}

TEST(KMeansTest, FewerDifferentVectorsThanCentroids) {
  const Vectors vectors = {1, 2, 1, 2, 3, 4, 1, 2}, weights = {1, 1, 1, 1};
  const Vectors found = WeightedKMeans(vectors, 2, weights, {.centroids = 8}).value();
  ASSERT_EQ(found.size(), 16u);
  int others = 0;
  for (std::size_t i = 0; i < found.size(); i += 2) {
    const std::pair pair(found[i], found[i + 1]);
    EXPECT_TRUE(pair == std::pair(1.0f, 2.0f) || pair == std::pair(3.0f, 4.0f));
    others += pair != std::pair(found[0], found[1]) ? 1 : 0;
  }
  EXPECT_EQ(others, 1) << "the rest is the first again";
  EXPECT_THAT(WeightedKMeans(Vectors(10), 1, Vectors(10, 1), {.centroids = 4}).value(), Each(0));
  // As many as there are.
  Vectors exact = WeightedKMeans(Vectors{4, 2, 9}, 1, Vectors{1, 2, 3}, {.centroids = 3}).value();
  std::sort(exact.begin(), exact.end());
  EXPECT_THAT(exact, ElementsAre(2, 4, 9));
}

TEST(KMeansTest, RefusesWhatItCannotDo) {
  const auto code = [](const Vectors& vectors, int channels, const Vectors& weights,
                       const KMeansOptions& options) {
    return WeightedKMeans(vectors, channels, weights, options).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code({}, 2, {}, {.centroids = 2}), kInvalid);
  EXPECT_EQ(code({1, 2, 3}, 2, {1}, {.centroids = 2}), kInvalid);
  EXPECT_EQ(code({1, 2}, 2, {1, 1}, {.centroids = 2}), kInvalid);
  EXPECT_EQ(code({1, 2}, 0, {1}, {.centroids = 2}), kInvalid);
  EXPECT_EQ(code({1, 2}, 2, {1}, {.centroids = 0}), kInvalid);
  EXPECT_EQ(code({1, 2}, 2, {1}, {.centroids = 2, .iterations = -1}), kInvalid);
}

}  // namespace
}  // namespace kvferry::calibrate
