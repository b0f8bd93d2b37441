#include "calibrate/clusters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvferry::calibrate {
namespace {

using ::testing::ElementsAre;

std::vector<std::vector<double>> OnALine(const std::vector<double>& places) {
  std::vector<std::vector<double>> points;
  for (const double place : places) points.push_back({place});
  return points;
}

TEST(DbscanTest, ClustersAreChainsOfCores) {
  // Two chains, and one that is near nobody.
  EXPECT_THAT(Dbscan(OnALine({0, 5, 1, 6, 2, 20}), 1, 2), ElementsAre(0, 1, 0, 1, 0, kNoise));
  EXPECT_THAT(Dbscan(OnALine({0, 1.5, 3}), 1, 2), ElementsAre(kNoise, kNoise, kNoise));
  EXPECT_TRUE(Dbscan({}, 1, 2).empty());
}

TEST(DbscanTest, ABorderPointJoinsACoreButLeadsNoFurther) {
  // With three samples only 1 is a core: 0 and 2 are its border, and 3 is near 2 alone.
  EXPECT_THAT(Dbscan(OnALine({0, 1, 2, 3.5}), 1, 3), ElementsAre(0, 0, 0, kNoise));
  // Met as noise first, a border point is taken by the core that comes later.
  EXPECT_THAT(Dbscan(OnALine({0, 1, 1.5, 9}), 1, 3), ElementsAre(0, 0, 0, kNoise));
}

TEST(DbscanTest, DistanceIsEuclidean) {
  const std::vector<std::vector<double>> points = {{0, 0}, {3, 4}, {3, 4.1}};
  EXPECT_THAT(Dbscan(points, 5, 2), ElementsAre(0, 0, 0));
  EXPECT_THAT(Dbscan(points, 4.9, 2), ElementsAre(kNoise, 0, 0));
}

TEST(GroupLayersTest, SameCandidatesAndNearLossesAreOneGroup) {
  const std::vector<LayerShape> layers = {
      {{0, 1}, {0.10, 0.5}},                         // with 2
      {{0, 2}, {0.10, 0.5}},                         // other candidates
      {{0, 1}, {0.11, 0.5}}, {{0, 1}, {0.90, 0.5}},  // alone
      {{0, 2}, {0.12, 0.5}},                         // with 1
  };
  EXPECT_THAT(GroupLayers(layers, 0.05, 2),
              ElementsAre(ElementsAre(0, 2), ElementsAre(1, 4), ElementsAre(3)));
}

}  // namespace
}  // namespace kvferry::calibrate
