#include "calibrate/profile_search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "calibrate/profile_record.h"
#include "calibrate/recorded_meter.h"
#include "kvcodec/profile.h"
#include "tests/model/temp_folder.h"

namespace kvferry::calibrate {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kLayers = 8;

void Ignore(std::string_view, int, int) {}

// A model that is not there: layer l loses weight[l] * (4^-k + 4^-v / 4) nats, and the first two
// layers lose more together than alone, unless one of them has 8 bits for its keys.
class PlantedMeter final : public KlMeter {
 public:
  absl::StatusOr<std::vector<double>> Measure(std::span<const codec::Codec> codecs) override {
    std::vector<double> losses;
    for (const codec::Codec& codec : codecs) {
      ++asked;
      double loss = 0;
      bool coarse = true;
      for (int layer = 0; layer < kLayers; ++layer) {
        const auto found = codec.layers.find(layer);
        const Pair bits =
            found == codec.layers.end() ? Pair{codec.k_bits, codec.v_bits} : found->second;
        if (layer < 2) coarse = coarse && bits.k_bits < 8;
        if (bits.k_bits == codec::kRawBits) continue;
        loss += weights[layer] * (std::pow(4, -bits.k_bits) + std::pow(4, -bits.v_bits) / 4);
      }
      losses.push_back(coarse ? loss + together : loss);
    }
    return losses;
  }

  std::vector<double> weights = {1, 1, 40, 1, 1, 40, 1, 1};
  double together = 0;
  int asked = 0;
};

SearchInput Input() {
  SearchInput input;
  input.base = codec::FindCodec("kivi-4-g64").value();
  input.geometry = {kLayers, 2, 64};
  input.pairs = AllPairs();
  // Layers 2 and 5 stand out, and so they do in groups.
  for (int layer = 0; layer < kLayers; ++layer) {
    std::vector<double>& errors = input.output_errors.emplace_back();
    for (const Pair& pair : input.pairs) {
      const double error = std::pow(2, -pair.k_bits) + std::pow(2, -pair.v_bits) / 2;
      errors.push_back(layer % 3 == 2 ? 3 * error : error);
    }
  }
  input.budget_bits = 4.5;  // as K4V4 with groups of 64
  input.nsga2 = {.population = 16, .generations = 10, .seed = 1};
  return input;
}

const Found& Uniform(const SearchInput& input, const SearchResult& result, Pair pair) {
  for (std::size_t i = 0; i < input.pairs.size(); ++i) {
    if (input.pairs[i] == pair) return result.uniform[i];
  }
  ADD_FAILURE();
  return result.uniform.front();
}

TEST(ProfileSearchTest, GivesTheBitsToTheLayersThatNeedThem) {
  PlantedMeter meter;
  const SearchInput input = Input();
  const auto result = SearchProfile(input, meter, [](std::string_view) {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_DOUBLE_EQ(result->alone[2][8], 40 * (std::pow(4, -2) + std::pow(4, -2) / 4));
  EXPECT_THAT(result->groups, ElementsAre(ElementsAre(0, 1, 3, 4, 6, 7), ElementsAre(2, 5)));
  EXPECT_LE(result->best.point.cost, 4.5);
  for (const int layer : {0, 1, 3, 4, 6, 7}) {
    EXPECT_LT(result->best.layers[layer].k_bits, result->best.layers[2].k_bits);
    EXPECT_LT(result->best.layers[layer].k_bits, result->best.layers[5].k_bits);
  }
  EXPECT_LT(result->best.point.loss, 0.8 * Uniform(input, *result, {4, 4}).point.loss);
  // Losses add here: the knapsack cannot be beaten, and its front is the better one.
  EXPECT_EQ(result->repaired.layers, result->knapsack_best.layers);
  EXPECT_LE(result->repaired.point.loss, result->nsga2_best.point.loss);
  EXPECT_LT(result->nsga2_best.point.loss, Uniform(input, *result, {4, 4}).point.loss);
}

TEST(ProfileSearchTest, TheRepairPassFindsWhatLayersAloneDoNotShow) {
  PlantedMeter meter;
  meter.together = 0.5;
  SearchInput input = Input();
  input.repair_width = 400;
  const auto result = SearchProfile(input, meter, [](std::string_view) {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_LT(result->knapsack_best.layers[0].k_bits, 8);
  EXPECT_LT(result->knapsack_best.layers[1].k_bits, 8);
  EXPECT_EQ(std::max(result->repaired.layers[0].k_bits, result->repaired.layers[1].k_bits), 8);
  EXPECT_LT(result->repaired.point.loss, result->knapsack_best.point.loss - 0.4);
  EXPECT_LE(result->repaired.point.cost, 4.5);
}

TEST(ProfileSearchTest, ABudgetThatNothingFitsIsRefusedBeforeTheWork) {
  PlantedMeter meter;
  SearchInput input = Input();
  input.budget_bits = 2.4;
  EXPECT_EQ(SearchProfile(input, meter, [](std::string_view) {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(meter.asked, 0);
  input.budget_bits = 2.5;
  const auto least = SearchProfile(input, meter, [](std::string_view) {});
  ASSERT_TRUE(least.ok()) << least.status();
  EXPECT_THAT(least->best.layers, Each(Pair{2, 2}));
}

TEST(ProfileSearchTest, AStoppedSearchGoesOnFromItsFile) {
  const model::TempFolder folder;
  const std::string path = (folder / "state.jsonl").string();
  const SearchInput input = Input();
  PlantedMeter meter;
  meter.together = 0.01;
  const auto search = [&] {
    const auto recorded = RecordedMeter::Open(path, {{"text", "a"}}, meter, Ignore).value();
    return SearchProfile(input, *recorded, [](std::string_view) {}).value();
  };
  const SearchResult first = search();
  const int all = std::exchange(meter.asked, 0);
  EXPECT_GT(all, 0);
  const SearchResult again = search();
  EXPECT_EQ(meter.asked, 0) << "nothing was left to measure";
  EXPECT_EQ(again.best.layers, first.best.layers);
  EXPECT_EQ(again.best.point, first.best.point);
  // Killed within a line: that one and what followed are measured again.
  std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
  EXPECT_EQ(search().best.layers, first.best.layers);
  EXPECT_GT(meter.asked, all / 4);
  EXPECT_LT(meter.asked, all);

  EXPECT_EQ(RecordedMeter::Open(path, {{"text", "b"}}, meter, Ignore).status().code(),
            absl::StatusCode::kFailedPrecondition);
  std::ofstream(path, std::ios::app) << "{\"hash\": 1}\n";
  EXPECT_EQ(RecordedMeter::Open(path, {{"text", "a"}}, meter, Ignore).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(ProfileSearchTest, TheFileIsTheProfileThatWasFound) {
  PlantedMeter meter;
  const SearchInput input = Input();
  const auto result = SearchProfile(input, meter, [](std::string_view) {});
  ASSERT_TRUE(result.ok()) << result.status();
  const std::vector<std::vector<LayerErrors>> errors(
      kLayers, std::vector<LayerErrors>(AllPairs().size(), LayerErrors{1, 2, 3, 4}));
  const nlohmann::json json = ProfileJson("mine", input, *result, errors, {{"text", "a.txt"}});
  const auto profile = codec::ParseProfile(json.dump(), "mine.json");
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->name, "mine");
  EXPECT_EQ(profile->layers, result->best.layers);
  const codec::Codec codec = codec::ProfileCodec(*profile).value();
  EXPECT_DOUBLE_EQ(codec.BitsPerValue(64), result->best.point.cost);
  EXPECT_EQ(json["search"]["text"], "a.txt");
  EXPECT_EQ(json["search"]["layers"][2]["errors"]["2/2"], nlohmann::json({1, 2, 3, 4}));
  EXPECT_EQ(json["search"]["layers"][2]["kl"]["2/2"], result->alone[2][8]);
  EXPECT_THAT(ProfileText("mine", *result), HasSubstr("all layers 4/4"));
}

}  // namespace
}  // namespace kvferry::calibrate
