#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "bench/quality/quality.h"
#include "tests/bench/byte_tokenizer.h"
#include "tests/model/temp_folder.h"

namespace kvferry::bench {
namespace {

class TextTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }
  absl::StatusOr<Text> Read(const std::vector<std::string>& paths) const {
    return ReadText(paths, ByteTokenizer());
  }
  static std::string Letters(const Text& text) {
    return std::string(text.tokens.begin(), text.tokens.end());
  }

  const model::TempFolder folder_;
};

TEST_F(TextTest, FilesFollowEachOtherAsTheyAreGiven) {
  const std::string a = Write("a.txt", "123456"), b = Write("b.txt", "789");
  const auto text = Read({a, b});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(Letters(*text), "123456789");
  EXPECT_EQ(text->check, "e3069283");  // of these digits, RFC 3720
  EXPECT_EQ(text->name, "a.txt, b.txt");
}

TEST_F(TextTest, OfAFolderThePythonSourcesByPath) {
  Write("lib/b.py", "B");
  Write("lib/a/z.py", "A");
  Write("lib/c.txt", "C");
  Write("lib/a.py", "P");
  for (const char* end : {"", "/"}) {
    const auto text = Read({(folder_ / "lib").string() + end});
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(Letters(*text), "APB");  // a/z.py, a.py, b.py
    EXPECT_EQ(text->name, "lib");
  }
}

TEST_F(TextTest, WhatIsNotThereIsNamed) {
  EXPECT_EQ(Read({"/no/such.txt"}).status().code(), absl::StatusCode::kNotFound);
  Write("empty/c.txt", "C");
  const absl::Status none = Read({(folder_ / "empty").string()}).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.message()), ::testing::HasSubstr("empty"));
}

}  // namespace
}  // namespace kvferry::bench
