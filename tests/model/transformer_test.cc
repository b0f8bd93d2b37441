#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/model.h"
#include "tests/model/exact_attention.h"
#include "tests/model/run_model.h"

namespace kvferry::model {
namespace {

using ::testing::HasSubstr;

// One tiny random model of every architecture, as transformers computes it.
class TinyModelTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {
 protected:
  void SetUp() override {
    const auto [file, golden] = GetParam();
    auto loaded = Model::Load({.path = (kGolden / "tiny" / file).string(), .threads = 1});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    model_ = *std::move(loaded);
    const auto expected = ReadGolden("tiny.json").at(golden);
    ids_ = expected.at("ids").get<std::vector<std::int32_t>>();
    expected_ = expected.at("logits").get<std::vector<float>>();
  }

  std::unique_ptr<Model> model_;
  std::vector<std::int32_t> ids_;
  std::vector<float> expected_;
};

TEST_P(TinyModelTest, LogitsEqualTransformers) {
  for (const std::size_t chunk : {ids_.size(), std::size_t{64}, std::size_t{1}}) {
    EXPECT_LT(LargestDifference(PromptLogits(*model_, ids_, chunk), expected_), 1e-4) << chunk;
  }
}

TEST_P(TinyModelTest, ScoreGivesTheLogitsOfEveryToken) {
  const std::span<const std::int32_t> ids = ids_;
  const std::size_t begin = ids.size() / 2, vocabulary = expected_.size();
  auto session = model_->StartPrefill(static_cast<int>(ids.size()), codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE((*session)->Run(ids.first(begin), Ignore).ok());
  std::vector<float> logits((ids.size() - begin) * vocabulary);
  EXPECT_FALSE((*session)->Score(ids.subspan(begin), std::span(logits).first(vocabulary)).ok());
  const absl::Status scored = (*session)->Score(ids.subspan(begin), logits);
  ASSERT_TRUE(scored.ok()) << scored;
  for (std::size_t end = begin + 1; end <= ids.size(); end += 7) {
    const auto row = std::span(logits).subspan((end - begin - 1) * vocabulary, vocabulary);
    EXPECT_LT(LargestDifference(row, PromptLogits(*model_, ids.first(end), end)), 1e-4) << end;
  }
  EXPECT_LT(LargestDifference((*session)->logits(), expected_), 1e-4);
}

TEST_P(TinyModelTest, RewindForgetsWhatFollowed) {
  ExpectRewindForgets(*model_, ids_, expected_, 1e-4);
}

TEST_P(TinyModelTest, DecodeStepsContinueThePrompt) {
  constexpr std::size_t kSteps = 30;
  const std::span<const std::int32_t> ids = ids_;
  for (const int sequences : {1, 3, 17}) {
    const auto logits =
        DecodeLogits(*model_, ids.first(ids.size() - kSteps), ids.last(kSteps), sequences);
    for (int i = 0; i < sequences; ++i) {
      const auto one = std::span(logits.back()).subspan(i * expected_.size(), expected_.size());
      // K and V are rounded to bf16 on their way.
      EXPECT_LT(LargestDifference(one, expected_), 0.05) << sequences;
    }
  }
}

TEST_P(TinyModelTest, Bf16IsClose) {
  auto model = Model::Load({.path = (kGolden / "tiny" / GetParam().first).string(),
                            .compute = ComputeType::kBf16,
                            .threads = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_LT(LargestDifference(PromptLogits(**model, ids_, 64), expected_), 0.3);
}

INSTANTIATE_TEST_SUITE_P(All, TinyModelTest, TinyModels(), TinyModelName);

TEST(ModelTest, LaterChunksLeaveEarlierKvAlone) {
  auto model = Model::Load({.path = (kGolden / "tiny/llama2").string(), .threads = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  auto session = (*model)->StartPrefill(20, codec::Raw16::kBf16);
  ASSERT_TRUE(session.ok()) << session.status();
  codec::KvView first;
  std::vector<std::uint16_t> before;
  std::vector<int> layers;
  const std::vector<std::int32_t> ids = {3, 1, 4, 1, 5, 9, 2, 6};
  ASSERT_TRUE((*session)
                  ->Run(ids,
                        [&](int layer, const codec::KvView& kv) {
                          layers.push_back(layer);
                          EXPECT_EQ(kv.tokens, 8);
                          EXPECT_EQ(kv.kv_heads, 2);
                          EXPECT_EQ(kv.head_dim, 8);
                          if (layer == 0) {
                            first = kv;
                            before.assign(kv.k, kv.k + 8 * 8);
                          }
                          return absl::OkStatus();
                        })
                  .ok());
  EXPECT_THAT(layers, ::testing::ElementsAre(0, 1));
  ASSERT_TRUE((*session)->Run(ids, Ignore).ok());
  EXPECT_EQ(std::memcmp(first.k, before.data(), before.size() * 2), 0);
}

TEST(ModelTest, BadRequestsAreRefused) {
  auto model = Model::Load({.path = (kGolden / "tiny/llama2").string(), .threads = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ((*model)->StartPrefill(0, codec::Raw16::kFp16).status().code(), invalid);
  EXPECT_EQ((*model)->StartPrefill(257, codec::Raw16::kFp16).status().code(), invalid);
  auto session = (*model)->StartPrefill(4, codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok());
  EXPECT_EQ((*session)->Run({}, Ignore).code(), invalid);
  EXPECT_EQ((*session)->Run(std::vector<std::int32_t>{64}, Ignore).code(), invalid);
  EXPECT_EQ((*session)->Run(std::vector<std::int32_t>{-1}, Ignore).code(), invalid);
  EXPECT_EQ((*session)->Run(std::vector<std::int32_t>(5, 1), Ignore).code(), invalid);
  EXPECT_EQ((*session)
                ->Run(std::vector<std::int32_t>{1},
                      [](int, const codec::KvView&) { return absl::CancelledError("stop"); })
                .code(),
            absl::StatusCode::kCancelled);

  ExactAttention attention((*model)->config(), 1, codec::Raw16::kFp16);
  std::vector<float> logits(64);
  const std::vector<std::int32_t> one = {1}, far = {256};
  EXPECT_EQ((*model)->DecodeStep({}, {}, attention, {}).code(), invalid);
  EXPECT_EQ((*model)->DecodeStep(one, far, attention, logits).code(), invalid);
  EXPECT_EQ((*model)->DecodeStep(one, one, attention, std::span(logits).first(63)).code(), invalid);
  EXPECT_EQ(Model::Load({.path = (kGolden / "none").string()}).status().code(),
            absl::StatusCode::kNotFound);
}

class SmolLm2Test : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    // One thread: a second one would only wait whenever other tests hold its core.
    auto loaded = Model::Load({.path = KVFERRY_DEMO_MODEL, .threads = 1});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    model_ = loaded->release();
    golden_ = new nlohmann::json(ReadGolden("smollm2.json"));
  }
  static void TearDownTestSuite() {
    delete model_;
    delete golden_;
  }

  static double Difference(std::span<const float> logits, const nlohmann::json& prompt) {
    std::vector<float> ours;
    for (const int column : golden_->at("columns")) ours.push_back(logits[column]);
    return LargestDifference(ours, prompt.at("logits").get<std::vector<float>>());
  }

  static inline Model* model_ = nullptr;
  static inline nlohmann::json* golden_ = nullptr;
};

TEST_F(SmolLm2Test, LogitsEqualTransformers) {
  const auto ids = golden_->at("ids").get<std::vector<std::int32_t>>();
  auto session = model_->StartPrefill(static_cast<int>(ids.size()), codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok()) << session.status();
  std::size_t at = 0;
  for (const auto& prompt : golden_->at("prompts")) {  // each is the beginning of the next
    const auto tokens = prompt.at("tokens").get<std::size_t>();
    const auto part = std::span<const std::int32_t>(ids).subspan(at, tokens - at);
    ASSERT_TRUE((*session)->Run(part, Ignore).ok());
    at = tokens;
    EXPECT_LE(Difference((*session)->logits(), prompt), tokens <= 1000 ? 1e-3 : 3e-3) << tokens;
    EXPECT_EQ(Argmax((*session)->logits()), prompt.at("argmax").get<int>()) << tokens;
  }
}

TEST_F(SmolLm2Test, OneShotEqualsChunks) {
  const auto ids = golden_->at("ids").get<std::vector<std::int32_t>>();
  const auto& prompt = golden_->at("prompts").at(2);
  const auto tokens = std::span(ids).first(prompt.at("tokens").get<std::size_t>());
  EXPECT_LE(Difference(PromptLogits(*model_, tokens, tokens.size()), prompt), 1e-3);
}

// With an fp16 cache: a step whose best two logits are closer than the rounding can move them ends
// the comparison.
TEST_F(SmolLm2Test, GreedyTokensEqualTransformers) {
  constexpr double kLogitError = 0.02;
  const auto ids = golden_->at("ids").get<std::vector<std::int32_t>>();
  for (const auto& prompt : golden_->at("prompts")) {
    if (!prompt.contains("greedy")) continue;
    const auto tokens = std::span(ids).first(prompt.at("tokens").get<std::size_t>());
    ExactAttention attention(model_->config(), 1, codec::Raw16::kFp16);
    std::vector<float> logits =
        PromptLogits(*model_, tokens, tokens.size(), [&](int layer, const codec::KvView& kv) {
          attention.Append(layer, 0, kv);
          return absl::OkStatus();
        });
    auto position = static_cast<std::int32_t>(tokens.size());
    int compared = 0;
    for (const auto& [token, margin] :
         prompt.at("greedy").get<std::vector<std::pair<std::int32_t, double>>>()) {
      if (margin < kLogitError) break;
      const std::int32_t ours = Argmax(logits);
      ASSERT_EQ(ours, token) << "at " << position << ", margin " << margin;
      ++compared;
      ASSERT_TRUE(
          model_->DecodeStep(std::span(&ours, 1), std::span(&position, 1), attention, logits).ok());
      ++position;
    }
    EXPECT_GE(compared, 8);
  }
}

}  // namespace
}  // namespace kvferry::model
