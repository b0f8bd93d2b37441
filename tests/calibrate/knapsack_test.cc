#include "calibrate/knapsack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace kvferry::calibrate {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

// The best of all choices, by trying each.
double LeastLoss(std::span<const std::vector<Option>> layers, std::int64_t budget) {
  double least = std::numeric_limits<double>::infinity();
  Choice choice(layers.size(), 0);
  while (true) {
    if (CostOf(layers, choice) <= budget) least = std::min(least, LossOf(layers, choice));
    std::size_t layer = 0;
    while (layer < layers.size() && ++choice[layer] == static_cast<int>(layers[layer].size())) {
      choice[layer++] = 0;
    }
    if (layer == layers.size()) return least;
  }
}

std::vector<std::vector<Option>> RandomLayers(int layers, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<Option>> all(layers);
  for (std::vector<Option>& options : all) {
    for (int i = 0; i < 4; ++i) {
      options.push_back({static_cast<std::int64_t>(128 * (1 + random() % 9)),
                         static_cast<double>(random() % 1000)});
    }
  }
  return all;
}

TEST(KnapsackTest, FindsThePlantedOptimum) {
  // Greedy by loss per byte takes layer 0's dear option first; the optimum leaves it.
  const std::vector<std::vector<Option>> layers = {
      {{200, 10}, {500, 0}}, {{200, 9}, {400, 1}}, {{200, 9}, {400, 1}}};
  EXPECT_THAT(*SolveKnapsack(layers, 1000), ElementsAre(0, 1, 1));
  EXPECT_THAT(*SolveKnapsack(layers, 600), ElementsAre(0, 0, 0));
  EXPECT_THAT(*SolveKnapsack(layers, 1300), ElementsAre(1, 1, 1));
  EXPECT_THAT(*SolveKnapsack(layers, 5000), ElementsAre(1, 1, 1));
}

TEST(KnapsackTest, EqualsTryingEverything) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<std::vector<Option>> layers = RandomLayers(6, seed);
    for (const std::int64_t budget : {2000, 3000, 4500}) {
      const absl::StatusOr<Choice> choice = SolveKnapsack(layers, budget);
      const double least = LeastLoss(layers, budget);
      if (!choice.ok()) {
        EXPECT_EQ(least, std::numeric_limits<double>::infinity());
        continue;
      }
      EXPECT_LE(CostOf(layers, *choice), budget);
      EXPECT_EQ(LossOf(layers, *choice), least) << "seed " << seed << ", budget " << budget;
    }
  }
}

TEST(KnapsackTest, ABudgetBelowTheCheapestIsRefused) {
  const std::vector<std::vector<Option>> layers = {{{256, 1}, {512, 0}}, {{128, 1}}};
  const absl::Status refused = SolveKnapsack(layers, 383).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("384"));
}

TEST(KnapsackTest, NeighboursDifferInOneLayerOrTwoAndFit) {
  const std::vector<std::vector<Option>> layers = {
      {{100, 4}, {200, 1}}, {{100, 5}, {200, 3}}, {{100, 9}, {200, 8}}};
  const Choice choice = {1, 0, 0};
  // 400 bytes are full: one layer may get cheaper, or one cheaper and another dearer.
  EXPECT_THAT(Neighbours(layers, choice, 400, 9),
              ElementsAre(Choice({0, 1, 0}), Choice({0, 0, 1}), Choice({0, 0, 0})));
  EXPECT_THAT(Neighbours(layers, choice, 400, 2), SizeIs(2));
  EXPECT_THAT(Neighbours(layers, choice, 500, 1), ElementsAre(Choice({1, 1, 0})));
}

}  // namespace
}  // namespace kvferry::calibrate
