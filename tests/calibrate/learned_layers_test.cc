#include "calibrate/learned_layers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/model/temp_folder.h"

namespace kvferry::calibrate {
namespace {

using ::testing::HasSubstr;

constexpr codec::CodebookShape kShape = {
    .layers = 3, .kv_heads = 1, .head_dim = 64, .coupling = {.channels = 2, .bits = 4}};
const nlohmann::json kRun = {{"seed", 1}, {"codec", "cq-2c4b"}};

LayerCodebooks Books(int layer) {
  LayerCodebooks books{.k = {.weighted = {0.1 / 3, 2}, .plain = {3, 4}},
                       .v = {.weighted = {5, 6}, .plain = {7, 8e-300}}};
  for (std::size_t i = 0; i < kShape.values() / 3; ++i) {
    books.centroids.push_back(static_cast<std::uint16_t>(i * 31 + static_cast<unsigned>(layer)));
  }
  return books;
}

class LearnedLayersTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<LearnedLayers>> Open(const nlohmann::json& run = kRun,
                                                      const codec::CodebookShape& shape = kShape) {
    return LearnedLayers::Open(path_, run, shape);
  }

  const model::TempFolder folder_;
  const std::string path_ = (folder_ / "state.jsonl").string();
};

TEST_F(LearnedLayersTest, AreThereAgain) {
  {
    const auto learned = Open();
    ASSERT_TRUE(learned.ok()) << learned.status();
    EXPECT_EQ((*learned)->count(), 0);
    ASSERT_TRUE((*learned)->Put(2, Books(2)).ok());
    ASSERT_TRUE((*learned)->Put(0, Books(0)).ok());
    EXPECT_EQ((*learned)->count(), 2);
  }
  const auto learned = Open();
  ASSERT_TRUE(learned.ok()) << learned.status();
  EXPECT_EQ((*learned)->layers(), 3);
  EXPECT_EQ((*learned)->count(), 2);
  EXPECT_EQ((*learned)->Get(1), nullptr);
  for (const int layer : {0, 2}) {
    const LayerCodebooks expected = Books(layer);
    const LayerCodebooks* got = (*learned)->Get(layer);
    ASSERT_NE(got, nullptr);
    EXPECT_EQ(got->centroids, expected.centroids);
    EXPECT_EQ(got->k.weighted.difference, expected.k.weighted.difference);
    EXPECT_EQ(got->k.plain.exact, 4);
    EXPECT_EQ(got->v.weighted.exact, 6);
    EXPECT_EQ(got->v.plain.exact, 8e-300);
  }
}

TEST_F(LearnedLayersTest, AnotherRunIsRefused) {
  ASSERT_TRUE((*Open())->Put(0, Books(0)).ok());
  const auto other = Open({{"seed", 2}, {"codec", "cq-2c4b"}});
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("seed 1"));
}

TEST_F(LearnedLayersTest, DamageIsNamed) {
  ASSERT_TRUE((*Open())->Put(0, Books(0)).ok());
  codec::CodebookShape larger = kShape;
  larger.kv_heads = 2;
  EXPECT_EQ(Open(kRun, larger).status().code(), absl::StatusCode::kDataLoss);
  for (const char* line : {R"({"layer": 3})", R"({"layer": -1})", R"({"layer": "0"})",
                           R"({"lair": 0})", R"({"layer": 1, "k": {"weighted": [1]}})",
                           R"({"layer": 1, "k": {"weighted": [1, 2], "unweighted": [1, 2]},
            "v": {"weighted": [1, 2], "unweighted": [1, 2]}, "centroids": "AAAA"})"}) {
    std::string flat = line;
    std::erase(flat, '\n');
    std::ofstream(path_, std::ios::trunc) << nlohmann::json{{"run", kRun}}.dump() << '\n'
                                          << flat << '\n';
    const absl::Status status = Open().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr("line 2")) << line;
  }
}

}  // namespace
}  // namespace kvferry::calibrate
