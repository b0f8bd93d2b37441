#include "bench/quality/scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "kvcodec/plan.h"

namespace kvferry::bench {
namespace {

int CodesSeenBy(const SimulatedCodec& codec, bool is_key, int query) {
  int codes = 0;
  for (int token = 0; token <= query; ++token) codes += CodesFrom(codec, is_key, token) <= query;
  return codes;
}

TEST(SchemeTest, BlocksBecomeCodesWhenThePlanSaysSo) {
  for (const codec::WindowSpec window : {codec::WindowSpec{4, 128}, {0, 0}, {16, 64}, {1, 33}}) {
    const SimulatedCodec codec = {.window = window};
    for (int query = 0; query < 500; ++query) {
      const int codes = 64 * codec::PlanBlocks(query, window).blocks;
      EXPECT_EQ(CodesSeenBy(codec, true, query), codes) << query;
      EXPECT_EQ(CodesSeenBy(codec, false, query), codes) << query;
    }
  }
}

TEST(SchemeTest, KivisKeysGo128AtOnceAndItsValuesOneByOne) {
  const SimulatedCodec codec = {.rule = FlushRule::kKivi};
  EXPECT_EQ(CodesSeenBy(codec, true, 127), 0);
  EXPECT_EQ(CodesSeenBy(codec, true, 128), 128);
  EXPECT_EQ(CodesSeenBy(codec, true, 255), 128);
  EXPECT_EQ(CodesSeenBy(codec, false, 128), 0);
  EXPECT_EQ(CodesSeenBy(codec, false, 129), 1);  // 128 newer ones stay, and the query's own
  EXPECT_EQ(CodesSeenBy(codec, false, 300), 172);
  const SimulatedCodec at_once = {.rule = FlushRule::kAtOnce};
  EXPECT_EQ(CodesSeenBy(at_once, true, 300), 300);
}

TEST(SchemeTest, BitsCountScalesMeansAndOutliers) {
  TensorScheme scheme = {.bits = 2, .group = 32};
  EXPECT_EQ(CodeBits(scheme, 64), 3);
  scheme.scale_bits = 8;
  EXPECT_EQ(CodeBits(scheme, 64), 2.5);
  scheme.block_means = true;
  EXPECT_EQ(CodeBits(scheme, 64), 2.75);
  scheme.outliers = 0.01;
  EXPECT_DOUBLE_EQ(CodeBits(scheme, 64), 3.07);
  scheme = {.bits = 4, .group = 64, .levels = TensorScheme::Levels::kNf4Table};
  EXPECT_EQ(CodeBits(scheme, 64), 4.25);
  EXPECT_EQ(CodeBits({}, 64), 16);
}

TEST(SchemeTest, RowsOfAGroupAreDifferentAndHaveTheirOwnNames) {
  const auto rows = ReportRows({}, 2, 3);
  ASSERT_TRUE(rows.ok()) << rows.status();
  std::set<std::string> names, descriptions;
  for (const SimulatedCodec& row : *rows) {
    EXPECT_TRUE(names.insert(row.group + ": " + row.name).second) << row.name;
    EXPECT_TRUE(descriptions.insert(row.group + row.Description()).second) << row.name;
  }
  EXPECT_EQ(ReportRows({"layers"}, 2, 3)->size(), 6u);
  EXPECT_EQ(ReportRows({"heads"}, 2, 3)->size(), 6u);
  const absl::Status unknown = ReportRows({"colours"}, 2, 3).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(unknown.message()), ::testing::HasSubstr("keys_values"));
}

}  // namespace
}  // namespace kvferry::bench
