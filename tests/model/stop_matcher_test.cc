#include "model/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace kvferry::model {
namespace {

using ::testing::HasSubstr;

StopMatcher Make(const std::vector<std::string>& stops) {
  absl::StatusOr<StopMatcher> matcher = StopMatcher::Create(stops);
  EXPECT_TRUE(matcher.ok()) << matcher.status();
  return *std::move(matcher);
}

// What comes out after each piece, "!" where it stopped, then what was left.
std::string Stream(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopMatcher matcher = Make(stops);
  std::string all;
  for (const std::string& piece : pieces) {
    const StopMatcher::Result result = matcher.Push(piece);
    all += result.text + (result.stopped ? "!" : "|");
  }
  return all + matcher.Finish();
}

TEST(StopMatcherTest, WithoutStopsEverythingPasses) {
  EXPECT_EQ(Stream({}, {"a", "", "bc"}), "a||bc|");
}

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBecomeAStop) {
  EXPECT_EQ(Stream({"END"}, {"xE", "N", "yz"}), "x||ENyz|");
  EXPECT_EQ(Stream({"END"}, {"xE", "N", "D", "y"}), "x||!!");
  EXPECT_EQ(Stream({"END"}, {"xEEN", "Dy"}), "xE|!");
  EXPECT_EQ(Stream({"END"}, {"EN"}), "|EN");
  EXPECT_EQ(Stream({"aab"}, {"aaa", "b"}), "a|!");
  EXPECT_EQ(Stream({"abab"}, {"abaab", "ab"}), "aba|!");
}

TEST(StopMatcherTest, TheFirstToBeCompleteWinsAndThenTheLonger) {
  EXPECT_EQ(Stream({"cd", "b"}, {"abcd"}), "a!");
  EXPECT_EQ(Stream({"abcd", "c"}, {"xabcd"}), "xab!");
  EXPECT_EQ(Stream({"c", "abc"}, {"xabc"}), "x!");
  EXPECT_EQ(Stream({"\n\n", "\n"}, {"a\n\n"}), "a!");
}

TEST(StopMatcherTest, CutsBetweenCharacters) {
  // The two share their first bytes: nothing may leave of a character that is held back in part.
  EXPECT_EQ(Stream({"é"}, {"aè", "é"}), "aè|!");
  EXPECT_EQ(Stream({"x😀y"}, {"x😀", "z"}), "|x😀z|");
}

TEST(StopMatcherTest, DoesNotDependOnHowTheTextIsCut) {
  std::mt19937 rng(11);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops;
    for (unsigned i = 0; i < 1 + rng() % 3; ++i) {
      std::string stop;
      for (unsigned n = 0; n < 1 + rng() % 4; ++n) stop += "ab"[rng() % 2];
      stops.push_back(stop);
    }
    std::string text;
    for (unsigned n = 0; n < rng() % 12; ++n) text += "abc"[rng() % 3];

    std::string expected = text;
    for (std::size_t end = 1; end <= text.size(); ++end) {
      std::size_t longest = 0;
      for (const std::string& stop : stops) {
        if (std::string_view(text).substr(0, end).ends_with(stop)) {
          longest = std::max(longest, stop.size());
        }
      }
      if (longest > 0) {
        expected = text.substr(0, end - longest);
        break;
      }
    }
    StopMatcher matcher = Make(stops);
    std::string actual;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t bytes = 1 + rng() % 3;
      actual += matcher.Push(std::string_view(text).substr(at, bytes)).text;
      at += bytes;
    }
    actual += matcher.Finish();
    ASSERT_EQ(actual, expected) << "text " << text;
  }
}

TEST(StopMatcherTest, BadStopsAreNamed) {
  const auto message = [](const std::vector<std::string>& stops) {
    const absl::Status status = StopMatcher::Create(stops).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message({"a", ""}), HasSubstr("stop[1] has 0 bytes"));
  EXPECT_THAT(message({std::string(257, 'a')}), HasSubstr("stop[0] has 257 bytes"));
  EXPECT_THAT(message(std::vector<std::string>(17, "a")), HasSubstr("17 strings; at most 16"));
  EXPECT_THAT(message({"a\xC3"}), HasSubstr("stop[0] is not valid UTF-8 at byte offset 1"));
  EXPECT_TRUE(StopMatcher::Create(std::vector<std::string>(16, std::string(256, 'a'))).ok());
}

}  // namespace
}  // namespace kvferry::model
