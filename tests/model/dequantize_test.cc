#include "model/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "model/gguf.h"

namespace kvferry::model {
namespace {

TEST(DequantizeTest, EveryTypeEqualsTheGgufPackage) {
  const auto file = GgufFile::Open("tests/golden/model/types.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto expected = nlohmann::json::parse(std::ifstream("tests/golden/model/types.json"));
  ASSERT_EQ(file->tensors().size(), 8u);
  for (const StoredTensor& tensor : file->tensors()) {
    EXPECT_EQ(tensor.name, std::string(Describe(tensor.type).name));
    const auto values = expected.at(tensor.name).get<std::vector<float>>();
    std::vector<float> ours(values.size());
    Dequantize(tensor.type, tensor.data, ours.data());
    EXPECT_EQ(ours, values) << tensor.name;
  }
}

TEST(DequantizeTest, HalfToFloatOfEveryKind) {
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_EQ(HalfToFloat(0xc000), -2.0f);
  EXPECT_EQ(HalfToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_TRUE(std::signbit(HalfToFloat(0x8000)));
  EXPECT_TRUE(std::isinf(HalfToFloat(0x7c00)));
  EXPECT_TRUE(std::isnan(HalfToFloat(0x7e00)));
}

TEST(DequantizeTest, FloatToBf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::infinity()), 0x7f80);
  const std::uint16_t nan = FloatToBf16(std::bit_cast<float>(0x7f800001u));
  EXPECT_GT(nan & 0x7fff, 0x7f80);
}

}  // namespace
}  // namespace kvferry::model
