#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <vector>

#include "model/sampler_random.h"

namespace kvferry::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::int32_t Sample(const std::vector<float>& logits, const SamplingParams& params,
                    const std::vector<std::int32_t>& history = {}, std::uint32_t position = 0) {
  return SampleToken(logits, params, history, position);
}

// How often each token is drawn over many positions.
std::map<std::int32_t, int> Histogram(const std::vector<float>& logits,
                                      const SamplingParams& params, std::uint32_t draws) {
  std::map<std::int32_t, int> counts;
  for (std::uint32_t position = 0; position < draws; ++position) {
    ++counts[Sample(logits, params, {}, position)];
  }
  return counts;
}

std::set<std::int32_t> Drawn(const std::vector<float>& logits, const SamplingParams& params) {
  std::set<std::int32_t> tokens;
  for (const auto& [token, count] : Histogram(logits, params, 2000)) tokens.insert(token);
  return tokens;
}

// From kat_vectors of Random123.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(SamplerTest, GoldenDrawsOfThePlainImplementation) {
  std::ifstream file("tests/golden/sampler/cases.json");
  const nlohmann::json cases = nlohmann::json::parse(file);
  ASSERT_GE(cases.size(), 400u);
  for (const nlohmann::json& c : cases) {
    const nlohmann::json& p = c["params"];
    const SamplingParams params{.temperature = p["temperature"],
                                .top_k = p["top_k"],
                                .top_p = p["top_p"],
                                .min_p = p["min_p"],
                                .repetition_penalty = p["repetition_penalty"],
                                .seed = p["seed"]};
    ASSERT_TRUE(params.Validate().ok());
    EXPECT_EQ(Sample(c["logits"], params, c["history"], c["position"]), c["token"].get<int>()) << c;
  }
}

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowerIdOfTwo) {
  EXPECT_EQ(Sample({1, 3, 2}, {}), 1);
  EXPECT_EQ(Sample({1, 3, 3}, {}), 1);
  EXPECT_EQ(Sample({-5}, {}), 0);
}

TEST(SamplerTest, LogitsThatAreNoNumbers) {
  for (const float temperature : {0.0f, 1.0f}) {
    const SamplingParams params{.temperature = temperature, .top_p = 0.9f};
    EXPECT_EQ(Sample({kNan, -100, kNan}, params), 1);
    EXPECT_EQ(Sample({kNan, kNan}, params), kNoToken);
    EXPECT_EQ(Sample({-kInf, kNan}, params), kNoToken);
    EXPECT_EQ(Sample({}, params), kNoToken);
    EXPECT_EQ(Sample({1, kInf, kInf}, params), 1);
    EXPECT_EQ(Sample({-kInf, 2, -kInf}, params), 1);
  }
}

TEST(SamplerTest, RepetitionPenaltyCountsATokenOnce) {
  const SamplingParams params{.repetition_penalty = 2};
  EXPECT_EQ(Sample({3, 2}, params, {0}), 1);          // 1.5 < 2
  EXPECT_EQ(Sample({5, 2}, params, {0, 0, 0}), 0);    // 2.5 > 2
  EXPECT_EQ(Sample({-1, -1.5}, params, {0}), 1);      // -2 < -1.5
  EXPECT_EQ(Sample({3, 2}, params, {-1, 2, 99}), 0);  // none of these exists
}

TEST(SamplerTest, DrawsDependOnSeedAndPositionOnly) {
  const std::vector<float> logits(1000, 0.5f);
  const SamplingParams a{.temperature = 1, .seed = 1}, b{.temperature = 1, .seed = 2};
  int equal_seeds = 0, equal_positions = 0;
  for (std::uint32_t position = 0; position < 100; ++position) {
    const std::int32_t token = Sample(logits, a, {}, position);
    EXPECT_EQ(Sample(logits, a, {1, 2, 3}, position), token);
    equal_seeds += Sample(logits, b, {}, position) == token;
    equal_positions += Sample(logits, a, {}, position + 1) == token;
  }
  EXPECT_LT(equal_seeds, 5);
  EXPECT_LT(equal_positions, 5);
}

TEST(SamplerTest, DrawsFollowTheProbabilities) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  std::map<std::int32_t, int> counts = Histogram(logits, {.temperature = 1, .seed = 9}, 20000);
  EXPECT_NEAR(counts[0], 10000, 300);
  EXPECT_NEAR(counts[1], 6000, 300);
  EXPECT_NEAR(counts[2], 4000, 300);
  // At temperature 1/2 probabilities are squared: 25, 9, 4 of 38.
  counts = Histogram(logits, {.temperature = 0.5f, .seed = 9}, 20000);
  EXPECT_NEAR(counts[0], 20000 * 25 / 38, 300);
}

TEST(SamplerTest, EachFilterKeepsWhatItShould) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.3f),
                                     std::log(0.15f), std::log(0.05f)};
  EXPECT_EQ(Drawn(logits, {.temperature = 1}).size(), 5u);
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_k = 2}), ElementsAre(1, 2));
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_k = 99}).size(), 5u);
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_p = 0.39f}), ElementsAre(1));
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_p = 0.5f}), ElementsAre(1, 2));
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_p = 0.8f}), ElementsAre(1, 2, 3));
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_p = 1e-9f}), ElementsAre(1));
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .min_p = 0.3f}), ElementsAre(1, 2, 3));
  // What min-p leaves is renormalized before top-p: 0.4, 0.3 and 0.15 of 0.85.
  EXPECT_THAT(Drawn(logits, {.temperature = 1, .top_p = 0.82f, .min_p = 0.3f}), ElementsAre(1, 2));
  // Of equals the lower ids.
  EXPECT_THAT(Drawn({1, 1, 1, 1}, {.temperature = 1, .top_k = 2}), ElementsAre(0, 1));
  EXPECT_THAT(Drawn({1, 1, 1, 1}, {.temperature = 1, .top_p = 0.7f}), ElementsAre(0, 1, 2));
}

TEST(SamplerTest, SmallTemperaturesAreGreedy) {
  for (const float temperature : {1e-6f, 1e-20f, 1e-45f}) {
    EXPECT_EQ(Sample({1, 5, 4.99f}, {.temperature = temperature}), 1);
  }
}

TEST(SamplerTest, ParametersOutOfRangeAreNamed) {
  const std::pair<SamplingParams, const char*> cases[] = {
      {{.temperature = -0.1f}, "sampling.temperature is -0.1; allowed is 0 (greedy) to 100"},
      {{.temperature = 101}, "sampling.temperature"},
      {{.temperature = kNan}, "sampling.temperature"},
      {{.top_k = -1}, "sampling.top_k is -1"},
      {{.top_p = 0}, "sampling.top_p is 0"},
      {{.top_p = 1.5f}, "sampling.top_p"},
      {{.top_p = kNan}, "sampling.top_p"},
      {{.min_p = 1}, "sampling.min_p is 1"},
      {{.min_p = -1}, "sampling.min_p"},
      {{.repetition_penalty = 0}, "sampling.repetition_penalty is 0"},
      {{.repetition_penalty = kInf}, "sampling.repetition_penalty"},
  };
  for (const auto& [params, message] : cases) {
    const absl::Status status = params.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  EXPECT_TRUE(SamplingParams{}.Validate().ok());
}

// A real vocabulary must cost little beside a decode step. Prints what it took; the bound is loose
// because other programs may run.
TEST(SamplerTest, RealVocabularyIsFast) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(49152);
  for (float& logit : logits) logit = normal(rng);
  const std::pair<const char*, SamplingParams> cases[] = {
      {"greedy", {}},
      {"temperature", {.temperature = 1}},
      {"top_k", {.temperature = 1, .top_k = 50}},
      {"top_p", {.temperature = 1, .top_p = 0.95f}},
      {"min_p", {.temperature = 1, .min_p = 0.05f}},
      {"all",
       {.temperature = 1, .top_k = 50, .top_p = 0.95f, .min_p = 0.05f, .repetition_penalty = 1.1f}},
  };
  const std::vector<std::int32_t> history(4096, 7);
  for (const auto& [name, params] : cases) {
    auto best = std::chrono::nanoseconds::max();
    for (std::uint32_t position = 0; position < 20; ++position) {
      const auto start = std::chrono::steady_clock::now();
      Sample(logits, params, history, position);
      best = std::min(best, std::chrono::nanoseconds(std::chrono::steady_clock::now() - start));
    }
    RecordProperty(name, static_cast<int>(best.count() / 1000));
    std::cout << name << ": " << best.count() / 1000 << " us\n";
    EXPECT_LT(best, std::chrono::milliseconds(20));
  }
}

}  // namespace
}  // namespace kvferry::model
