#include "bench/quality/passkey.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/bench/byte_tokenizer.h"

namespace kvferry::bench {
namespace {

using ::testing::HasSubstr;

TEST(PasskeyTest, KeysStandWhereTheirDepthSays) {
  const ByteTokenizer tokenizer;
  const std::vector<std::int32_t> text(12000, '.');
  const auto passkeys = MakePasskeys(tokenizer, text, 1000, 2, 1);
  ASSERT_TRUE(passkeys.ok()) << passkeys.status();
  ASSERT_EQ(passkeys->size(), 2 * kPasskeyDepths.size());
  std::vector<std::string> keys;
  for (const Passkey& passkey : *passkeys) {
    const std::string prompt(passkey.prompt.begin(), passkey.prompt.end());
    EXPECT_EQ(prompt.size(), 1000u);
    const std::size_t fact = prompt.find("\n\nThe pass key is " + passkey.key + ". Remember it.");
    ASSERT_NE(fact, std::string::npos) << prompt;
    const std::size_t filler =
        static_cast<std::size_t>(std::count(prompt.begin(), prompt.end(), '.')) - 3;
    EXPECT_EQ(fact, filler * kPasskeyDepths[passkey.depth] / 100);
    EXPECT_TRUE(prompt.ends_with("The pass key is"));
    EXPECT_EQ(passkey.key.size(), 5u);
    keys.push_back(passkey.key);
  }
  std::sort(keys.begin(), keys.end());
  EXPECT_EQ(std::unique(keys.begin(), keys.end()), keys.end());
  EXPECT_EQ(MakePasskeys(tokenizer, text, 1000, 2, 1)->front().prompt, passkeys->front().prompt);
  EXPECT_NE(MakePasskeys(tokenizer, text, 1000, 2, 2)->front().prompt, passkeys->front().prompt);
}

TEST(PasskeyTest, WhatDoesNotFitIsRefused) {
  const ByteTokenizer tokenizer;
  const std::vector<std::int32_t> text(12000, '.');
  EXPECT_THAT(std::string(MakePasskeys(tokenizer, text, 100, 1, 1).status().message()),
              HasSubstr("prompt_tokens is 100: key and question take"));
  EXPECT_THAT(std::string(MakePasskeys(tokenizer, text, 1000, 3, 1).status().message()),
              HasSubstr("15 passages"));
}

TEST(PasskeyTest, AnAnswerNamesTheKeyWhereverItStands) {
  const ByteTokenizer tokenizer;
  const auto names = [&](const std::string& answer) {
    return NamesKey(tokenizer, std::vector<std::int32_t>(answer.begin(), answer.end()), "12345")
        .value();
  };
  EXPECT_TRUE(names("12345"));
  EXPECT_TRUE(names(" the 12345."));
  EXPECT_FALSE(names("1234"));
  EXPECT_FALSE(names("12 345"));
}

}  // namespace
}  // namespace kvferry::bench
