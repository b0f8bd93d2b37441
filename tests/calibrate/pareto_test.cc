#include "calibrate/pareto.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvferry::calibrate {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ParetoTest, WhatAnotherDominatesIsNotOnTheFront) {
  const std::vector<Point> points = {{4, 1}, {2, 5}, {4, 2}, {3, 5}, {8, 0.5}, {9, 0.5}, {2, 5}};
  EXPECT_THAT(ParetoFront(points), ElementsAre(1, 0, 4));
  EXPECT_THAT(ParetoFront({}), IsEmpty());
  const std::vector<Point> one = {{1, 1}};
  EXPECT_THAT(ParetoFront(one), ElementsAre(0));
}

TEST(ParetoTest, VolumeIsTheAreaUpToTheWorst) {
  const Point worst{10, 10};
  EXPECT_EQ(Hypervolume({}, worst), 0);
  const std::vector<Point> one = {{4, 2}};
  EXPECT_EQ(Hypervolume(one, worst), 6 * 8);
  const std::vector<Point> three = {{2, 5}, {4, 2}, {4, 8}};
  EXPECT_EQ(Hypervolume(three, worst), 8 * 5 + 6 * 3);
  const std::vector<Point> beyond = {{11, 1}, {1, 11}, {2, 5}};
  EXPECT_EQ(Hypervolume(beyond, worst), 8 * 5);
}

}  // namespace
}  // namespace kvferry::calibrate
