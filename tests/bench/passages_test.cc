#include "bench/quality/passages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "bench/quality/quality.h"

namespace kvferry::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int> Numbers(const std::vector<Passage>& passages) {
  std::vector<int> numbers;
  for (const Passage& passage : passages) numbers.push_back(passage.number);
  return numbers;
}

TEST(PassagesTest, SpreadOverTheText) {
  std::vector<std::int32_t> text(109);
  std::iota(text.begin(), text.end(), 0);
  const auto four = SpreadPassages(text, 10, 4);
  ASSERT_TRUE(four.ok()) << four.status();
  EXPECT_THAT(Numbers(*four), ElementsAre(0, 2, 5, 7));
  EXPECT_EQ(four->back().tokens.front(), 70);
  EXPECT_EQ(four->back().tokens.size(), 10u);
  EXPECT_THAT(Numbers(*SpreadPassages(text, 10, 2)), ElementsAre(0, 5));  // half of the four
  EXPECT_THAT(Numbers(*SpreadPassages(text, 10, 10)), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
}

TEST(PassagesTest, ATextThatIsTooShortSaysForHowManyItIsEnough) {
  const std::vector<std::int32_t> text(109);
  const absl::Status status = SpreadPassages(text, 10, 11).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("109 tokens, enough for 10"));
  EXPECT_FALSE(SpreadPassages({}, 10, 1).ok());
  EXPECT_FALSE(SpreadPassages(text, 10, 0).ok());
}

TEST(ParseCodecsTest, ASettingBelongsToTheCodecBeforeIt) {
  const auto codecs = ParseCodecs("kivi-4,kivi-2:sinks=0,recent=64,layer.1=8/8,fp16");
  ASSERT_TRUE(codecs.ok()) << codecs.status();
  ASSERT_EQ(codecs->size(), 3u);
  EXPECT_EQ((*codecs)[0].name, "kivi-4");
  EXPECT_EQ((*codecs)[1].name, "kivi-2:sinks=0,recent=64,layer.1=8/8");
  EXPECT_EQ((*codecs)[2].name, "fp16");
  EXPECT_EQ(ParseCodecs("zip").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ParseCodecs("").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseCodecs("sinks=0,kivi-4").status().code(), absl::StatusCode::kNotFound);
}

TEST(SanityCodecsTest, AreDifferentCodecs) {
  const auto codecs = SanityCodecs();
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(codecs[i].Hash(), codecs[j].Hash());
  }
}

}  // namespace
}  // namespace kvferry::bench
