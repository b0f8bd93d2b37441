#include "bench/quality/state_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/model/temp_folder.h"

namespace kvferry::bench {
namespace {

using ::testing::HasSubstr;

const nlohmann::json kRun = {{"text", "abc"}, {"prompt_tokens", 4}};

Record MakeRecord(int passage, const std::string& codec) {
  return {.passage = passage,
          .codec = codec,
          .codec_hash = "h1",
          .nll = {0.1, 1.0 / 3},  // no short decimal: must come back as it was
          .kl = {1e-17, 0},
          .agree = 2,
          .sure = 1,
          .sure_agree = 1,
          .top5 = 9,
          .greedy_tokens = 9,
          .greedy_prefix = 3,
          .trajectory_kl = {0.2, 2.0 / 3},
          .attention_error = {0.25},
          .wire_bytes = 1000,
          .resident_bytes = 2000,
          .resident_tokens = 7,
          .seconds = 1.5};
}

class StateFileTest : public ::testing::Test {
 protected:
  std::unique_ptr<StateFile> Open(const nlohmann::json& run = kRun) {
    auto state = StateFile::Open(path_, run);
    EXPECT_TRUE(state.ok()) << state.status();
    return state.ok() ? *std::move(state) : nullptr;
  }
  void AddText(const std::string& text) const { std::ofstream(path_, std::ios::app) << text; }

  const model::TempFolder folder_;
  const std::string path_ = (folder_ / "state.jsonl").string();
};

TEST_F(StateFileTest, ARunGoesOnWhereItWas) {
  {
    auto state = Open();
    EXPECT_EQ(state->Find(0, "kivi-4", "h1"), nullptr);
    EXPECT_TRUE(state->Append(MakeRecord(0, "kivi-4")).ok());
    EXPECT_TRUE(state->Append(MakeRecord(1, "kivi-4")).ok());
  }
  auto state = Open();
  const Record* found = state->Find(1, "kivi-4", "h1");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(*found, MakeRecord(1, "kivi-4"));
  EXPECT_EQ(state->Find(2, "kivi-4", "h1"), nullptr);
  EXPECT_EQ(state->Find(1, "kivi-2", "h1"), nullptr);
  EXPECT_EQ(state->Find(1, "kivi-4", "h2"), nullptr) << "another version of the codec";
}

TEST_F(StateFileTest, ALineThatWasBeingWrittenIsCutOff) {
  EXPECT_TRUE(Open()->Append(MakeRecord(0, "kivi-4")).ok());
  AddText(R"({"passage":1,"codec":"ki)");
  {
    auto state = Open();
    EXPECT_NE(state->Find(0, "kivi-4", "h1"), nullptr);
    EXPECT_TRUE(state->Append(MakeRecord(1, "kivi-4")).ok());
  }
  EXPECT_NE(Open()->Find(1, "kivi-4", "h1"), nullptr);
}

TEST_F(StateFileTest, AFirstLineThatWasBeingWrittenBeginsANewFile) {
  AddText(R"({"run":)");
  EXPECT_TRUE(Open()->Append(MakeRecord(0, "kivi-4")).ok());
  EXPECT_NE(Open()->Find(0, "kivi-4", "h1"), nullptr);
}

TEST_F(StateFileTest, ALaterRecordTakesThePlaceOfAnEarlierOne) {
  auto state = Open();
  EXPECT_TRUE(state->Append(MakeRecord(0, "kivi-4")).ok());
  Record again = MakeRecord(0, "kivi-4");
  again.agree = 77;
  EXPECT_TRUE(state->Append(again).ok());
  EXPECT_EQ(state->Find(0, "kivi-4", "h1")->agree, 77);
  EXPECT_EQ(Open()->Find(0, "kivi-4", "h1")->agree, 77);
}

TEST_F(StateFileTest, AnotherRunIsRefusedByName) {
  EXPECT_NE(Open(), nullptr);
  const auto other = StateFile::Open(path_, {{"text", "abc"}, {"prompt_tokens", 8}});
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("prompt_tokens 4, this one has 8"));
}

TEST_F(StateFileTest, DamageIsFound) {
  AddText("{\"name\":\"something else\"}\n");
  EXPECT_EQ(StateFile::Open(path_, kRun).status().code(), absl::StatusCode::kFailedPrecondition);
  std::filesystem::remove(path_);
  EXPECT_NE(Open(), nullptr);
  AddText("{\"passage\":1}\n");
  const absl::Status missing = StateFile::Open(path_, kRun).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("line 2"));
  std::filesystem::remove(path_);
  EXPECT_NE(Open(), nullptr);
  AddText("not json\n");
  EXPECT_EQ(StateFile::Open(path_, kRun).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(StateFileTest, AFolderThatIsNotThere) {
  EXPECT_FALSE(StateFile::Open((folder_ / "no/state.jsonl").string(), kRun).ok());
}

}  // namespace
}  // namespace kvferry::bench
