#include "model/random_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <vector>

#include "model/model.h"
#include "tests/model/run_model.h"
#include "tests/model/temp_folder.h"

namespace kvferry::model {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

std::vector<float> Tensor(std::string_view name, std::int64_t columns, std::size_t count) {
  std::vector<float> values(count);
  FillRandomTensor(name, columns, values);
  return values;
}

TEST(RandomWeightsTest, DependOnNameAndIndexAlone) {
  const std::string name = "model.layers.3.mlp.up_proj.weight";
  const auto values = Tensor(name, 64, 4096);
  EXPECT_EQ(Tensor(name, 64, 4096), values);
  EXPECT_EQ(Tensor(name, 64, 10), std::vector<float>(values.begin(), values.begin() + 10));
  EXPECT_NE(Tensor("model.layers.4.mlp.up_proj.weight", 64, 4096), values);
}

TEST(RandomWeightsTest, AMatrixKeepsTheSizeOfItsInput) {
  double sum = 0, squares = 0;
  const auto values = Tensor("lm_head.weight", 256, 1 << 18);
  for (const float value : values) sum += value, squares += value * value;
  const auto count = static_cast<double>(values.size());
  EXPECT_NEAR(sum / count, 0, 1e-3);
  EXPECT_NEAR(std::sqrt(squares / count), 1.0 / 16, 1e-3);
}

TEST(RandomWeightsTest, NormsAreOne) {
  EXPECT_THAT(Tensor("model.norm.weight", 64, 64), Each(1.0f));
  EXPECT_THAT(Tensor("model.layers.0.self_attn.q_norm.weight", 64, 64), Each(1.0f));
}

class RandomModelTest : public ::testing::Test {
 protected:
  RandomModelTest() : path_((folder_ / "shape.json").string()) {
    std::ofstream(path_)
        << R"({"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 128,
               "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
               "max_position_embeddings": 256, "tie_word_embeddings": false})";
  }

  const TempFolder folder_;
  const std::string path_;
};

TEST_F(RandomModelTest, ComputesAndIsTheSameEveryTime) {
  std::vector<std::vector<float>> logits;
  std::vector<std::uint64_t> hashes;
  for (int i = 0; i < 2; ++i) {
    const auto model = Model::Load({.path = path_, .random_weights = true, .threads = 1});
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->config().layers, 3);
    logits.push_back(PromptLogits(**model, std::vector<std::int32_t>{1, 5, 99, 7}, 4));
    hashes.push_back((*model)->weights_hash());
  }
  ASSERT_EQ(logits[0].size(), 128u);
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_EQ(hashes[0], hashes[1]);
  double squares = 0;
  for (const float value : logits[0]) squares += value * value;
  EXPECT_GT(squares / 128, 0.1);  // neither zero
  EXPECT_LT(squares / 128, 10);   // nor out of hand
}

TEST_F(RandomModelTest, AMissingConfigurationIsNamed) {
  const auto model = Model::Load({.path = path_ + "x", .random_weights = true});
  ASSERT_FALSE(model.ok());
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("shape.jsonx"));
}

}  // namespace
}  // namespace kvferry::model
