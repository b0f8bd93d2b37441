#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>

#include "model/tokenizer.h"
#include "model/unicode.h"

namespace kvferry::model {
namespace {

// Each id is one byte; 256 is a special token.
class ByteTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view, bool) const override {
    return absl::UnimplementedError("not needed");
  }
  absl::StatusOr<std::string> TokenBytes(std::int32_t id) const override {
    if (id < 0 || id > 256) return absl::InvalidArgumentError("no such token");
    return id == 256 ? std::string() : std::string(1, static_cast<char>(id));
  }
  bool IsSpecial(std::int32_t id) const override { return id == 256; }
  int vocabulary() const override { return 257; }
  std::span<const std::int32_t> end_tokens() const override { return {}; }
  const std::string& chat_template() const override { return template_; }

 private:
  std::string template_;
};

// What comes out after each byte, joined with "|".
std::string Stream(std::string_view bytes) {
  const ByteTokenizer tokenizer;
  Detokenizer detokenizer(tokenizer);
  std::string all;
  for (const char byte : bytes) {
    all += *detokenizer.Push(static_cast<unsigned char>(byte)) + "|";
  }
  return all + detokenizer.Finish();
}

TEST(DetokenizerTest, GivesOutWholeCharacters) {
  EXPECT_EQ(Stream(""), "");
  EXPECT_EQ(Stream("ab"), "a|b|");
  EXPECT_EQ(Stream("é"), "|é|");
  EXPECT_EQ(Stream("€x"), "||€|x|");
  EXPECT_EQ(Stream("😀"), "|||😀|");
}

TEST(DetokenizerTest, ReplacesWhatCannotBecomeACharacterAtOnce) {
  EXPECT_EQ(Stream("\x80"), "\uFFFD|");
  EXPECT_EQ(Stream("\xFFz"), "\uFFFD|z|");
  EXPECT_EQ(Stream("\xC3z"), "|\uFFFDz|");
  EXPECT_EQ(Stream("\xE2\x82z"), "||\uFFFDz|");
  EXPECT_EQ(Stream("\xED\xA0"), "|\uFFFD\uFFFD|");       // a surrogate
  EXPECT_EQ(Stream("\xE0\x80"), "|\uFFFD\uFFFD|");       // longer than needed
  EXPECT_EQ(Stream("\xF0\x9F\xC3\xA9"), "||\uFFFD|é|");  // one replacement for both
}

TEST(DetokenizerTest, FinishReplacesAnIncompleteCharacterOnce) {
  EXPECT_EQ(Stream("a\xF0\x9F\x98"), "a||||\uFFFD");
  const ByteTokenizer tokenizer;
  Detokenizer detokenizer(tokenizer);
  ASSERT_TRUE(detokenizer.Push(0xE2).ok());
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST(DetokenizerTest, SpecialTokensGiveNothingAndDoNotCutACharacter) {
  const ByteTokenizer tokenizer;
  Detokenizer detokenizer(tokenizer);
  EXPECT_EQ(*detokenizer.Push(0xC3), "");
  EXPECT_EQ(*detokenizer.Push(256), "");
  EXPECT_EQ(*detokenizer.Push(0xA9), "é");
}

TEST(DetokenizerTest, AnUnknownIdIsRefusedAndChangesNothing) {
  const ByteTokenizer tokenizer;
  Detokenizer detokenizer(tokenizer);
  EXPECT_EQ(*detokenizer.Push(0xC3), "");
  EXPECT_EQ(detokenizer.Push(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*detokenizer.Push(0xA9), "é");
}

TEST(DetokenizerTest, RandomBytesAlwaysComeOutAsUtf8) {
  std::mt19937 rng(7);
  const ByteTokenizer tokenizer;
  for (int round = 0; round < 200; ++round) {
    Detokenizer detokenizer(tokenizer);
    std::string all;
    for (int i = 0; i < 100; ++i) {
      const absl::StatusOr<std::string> text =
          detokenizer.Push(static_cast<std::int32_t>(0x70 + rng() % 0x90));
      ASSERT_TRUE(text.ok());
      ASSERT_TRUE(CheckUtf8(*text, "piece").ok());
      all += *text;
    }
    ASSERT_TRUE(CheckUtf8(all + detokenizer.Finish(), "all").ok());
  }
}

}  // namespace
}  // namespace kvferry::model
