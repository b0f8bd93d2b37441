#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace kvferry::model {
namespace {

void Feed(const std::string& bytes) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

// The seeds of the fuzzer, their beginnings, and random edits of them.
TEST(TokenizerFuzzTest, Corpus) {
  std::mt19937 rng(5);
  int seeds = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("tests/fuzz/corpus/tokenizer_json")) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    ++seeds;
    Feed(bytes);
    for (std::size_t size = 0; size < bytes.size(); size += 7) Feed(bytes.substr(0, size));
    for (int edit = 0; edit < 300 && !bytes.empty(); ++edit) {
      std::string edited = bytes;
      edited[rng() % edited.size()] = static_cast<char>(rng());
      Feed(edited);
    }
  }
  EXPECT_GE(seeds, 9);
}

}  // namespace
}  // namespace kvferry::model
