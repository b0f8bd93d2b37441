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

// The seeds of the fuzzer that this program is built with, and random edits of them.
TEST(FileFuzzTest, Corpus) {
  std::mt19937 rng(7);
  int seeds = 0;
  for (const auto& entry : std::filesystem::directory_iterator(KVFERRY_CORPUS)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    ++seeds;
    Feed(bytes);
    for (int edit = 0; edit < 200 && !bytes.empty(); ++edit) {
      std::string edited = bytes;
      edited[rng() % edited.size()] = static_cast<char>(rng());
      if (edit % 4 == 0) edited.resize(rng() % edited.size());
      Feed(edited);
    }
  }
  EXPECT_GE(seeds, 4);
}

}  // namespace
}  // namespace kvferry::model
