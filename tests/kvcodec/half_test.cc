#include "kvcodec/half.h"

#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace kvferry::codec {
namespace {

TEST(HalfTest, FloatFromHalfOfEveryKind) {
  EXPECT_EQ(FloatFromHalf(0x3c00), 1.0f);
  EXPECT_EQ(FloatFromHalf(0xc000), -2.0f);
  EXPECT_EQ(FloatFromHalf(0x7bff), 65504.0f);
  EXPECT_EQ(FloatFromHalf(0x0001), 0x1p-24f);
  EXPECT_TRUE(std::signbit(FloatFromHalf(0x8000)));
  EXPECT_TRUE(std::isinf(FloatFromHalf(0x7c00)));
  EXPECT_TRUE(std::isnan(FloatFromHalf(0x7e00)));
}

TEST(HalfTest, Bf16FromFloatRoundsToNearestEven) {
  EXPECT_EQ(Bf16FromFloat(1.0f), 0x3f80);
  EXPECT_EQ(Bf16FromFloat(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, to even
  EXPECT_EQ(Bf16FromFloat(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, to even
  EXPECT_EQ(Bf16FromFloat(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(Bf16FromFloat(std::numeric_limits<float>::infinity()), 0x7f80);
  const std::uint16_t nan = Bf16FromFloat(std::bit_cast<float>(0x7f800001u));
  EXPECT_GT(nan & 0x7fff, 0x7f80);
}

}  // namespace
}  // namespace kvferry::codec
