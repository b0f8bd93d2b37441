#include "calibrate/nsga2.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "calibrate/knapsack.h"

namespace kvferry::calibrate {
namespace {

// Twelve genes; the dearer option of gene i gains i + 1.
constexpr int kGenes = 12;

Point PlantedPoint(const Genes& genes) {
  Point point{0, 0};
  for (int i = 0; i < kGenes; ++i) {
    point.cost += 1 + genes[i];
    point.loss += (i + 1) / (1.0 + genes[i]);
  }
  return point;
}

absl::StatusOr<std::vector<Point>> Planted(std::span<const Genes> genes) {
  std::vector<Point> points;
  for (const Genes& one : genes) points.push_back(PlantedPoint(one));
  return points;
}

std::vector<Point> PointsOf(const std::vector<Individual>& all) {
  std::vector<Point> points;
  for (const Individual& one : all) points.push_back(one.point);
  return points;
}

// What knapsacks of all budgets give.
std::vector<Point> ExactFront() {
  std::vector<std::vector<Option>> layers;
  for (int i = 0; i < kGenes; ++i) {
    layers.push_back({{1, i + 1.0}, {2, (i + 1) / 2.0}, {3, (i + 1) / 3.0}});
  }
  std::vector<Point> front;
  for (int budget = kGenes; budget <= 3 * kGenes; ++budget) {
    front.push_back(PlantedPoint(SolveKnapsack(layers, budget).value()));
  }
  return front;
}

TEST(Nsga2Test, ComesNearTheExactFrontOfAPlantedProblem) {
  const std::vector<int> sizes(kGenes, 3);
  const Point worst{3.0 * kGenes, PlantedPoint(Genes(kGenes, 0)).loss};
  const double exact = Hypervolume(ExactFront(), worst);
  const auto few = RunNsga2(sizes, {.population = 32, .generations = 0, .seed = 3}, Planted);
  const auto many = RunNsga2(sizes, {.population = 32, .generations = 100, .seed = 3}, Planted);
  ASSERT_TRUE(few.ok()) << few.status();
  ASSERT_TRUE(many.ok()) << many.status();
  const double found = Hypervolume(PointsOf(*many), worst);
  EXPECT_LE(found, exact * (1 + 1e-12)) << "nothing can be better than exact";
  EXPECT_GT(found, 0.97 * exact);
  EXPECT_GT(found, 1.05 * Hypervolume(PointsOf(*few), worst));
}

TEST(Nsga2Test, TheSeedDecidesAndNothingIsEvaluatedTwice) {
  const std::vector<int> sizes(kGenes, 3);
  std::set<Genes> seen;
  const Evaluate count = [&](std::span<const Genes> genes) {
    for (const Genes& one : genes) {
      EXPECT_EQ(one.size(), static_cast<std::size_t>(kGenes));
      EXPECT_TRUE(seen.insert(one).second);
      for (const int gene : one) EXPECT_TRUE(gene >= 0 && gene < 3);
    }
    return Planted(genes);
  };
  const Nsga2Options options{.population = 16, .generations = 10, .seed = 7};
  const auto first = RunNsga2(sizes, options, count);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->size(), seen.size());
  const auto again = RunNsga2(sizes, options, Planted);
  ASSERT_EQ(again->size(), first->size());
  for (std::size_t i = 0; i < first->size(); ++i) {
    EXPECT_EQ((*again)[i].genes, (*first)[i].genes);
  }
  const auto other = RunNsga2(sizes, {.population = 16, .generations = 10, .seed = 8}, Planted);
  EXPECT_NE(other->front().genes, first->front().genes);
}

TEST(Nsga2Test, AGeneOfOneValueStaysThat) {
  const std::vector<int> sizes = {1, 3, 1, 2};
  const auto all = RunNsga2(sizes, {.population = 8, .generations = 5, .seed = 1},
                            [](std::span<const Genes> genes) {
                              std::vector<Point> points;
                              for (const Genes& one : genes) {
                                EXPECT_EQ(one[0], 0);
                                EXPECT_EQ(one[2], 0);
                                points.push_back({1.0 * one[1], 1.0 * -one[1] - one[3]});
                              }
                              return absl::StatusOr<std::vector<Point>>(points);
                            });
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_GT(all->size(), 3u);
  const std::vector<int> nothing_to_choose = {1, 1};
  const auto one =
      RunNsga2(nothing_to_choose, {.population = 8, .generations = 5, .seed = 1},
               [](std::span<const Genes> genes) { return std::vector<Point>(genes.size()); });
  EXPECT_EQ(one->size(), 1u);
}

TEST(Nsga2Test, FailuresComeOutAsTheyAre) {
  const std::vector<int> sizes(4, 3);
  int calls = 0;
  const auto failed = RunNsga2(
      sizes, {.population = 8, .generations = 5, .seed = 1}, [&](std::span<const Genes> genes) {
        if (++calls < 3) {
          return absl::StatusOr<std::vector<Point>>(std::vector<Point>(genes.size(), Point{1, 1}));
        }
        return absl::StatusOr<std::vector<Point>>(absl::DataLossError("the disk is full"));
      });
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kDataLoss);
  for (const int population : {0, 4, 10}) {
    EXPECT_EQ(RunNsga2(sizes, {.population = population}, Planted).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace kvferry::calibrate
