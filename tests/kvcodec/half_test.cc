#include "kvcodec/half.h"

#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kvcodec/e4m3.h"

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

TEST(E4m3Test, EveryCodeRoundTrips) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;  // NaN: never written
    const float value = FloatFromE4m3(static_cast<std::uint8_t>(code));
    EXPECT_EQ(E4m3FromFloat(value), code == 0x80 ? 0 : code);
  }
  EXPECT_EQ(FloatFromE4m3(0x7e), 448.0f);
  EXPECT_EQ(FloatFromE4m3(0x01), 0x1p-9f);
}

TEST(E4m3Test, RoundsToNearestEvenAndSaturates) {
  EXPECT_EQ(E4m3FromFloat(1.0f + 0x1p-4f), 0x38);      // tie, even below
  EXPECT_EQ(E4m3FromFloat(1.0f + 3 * 0x1p-4f), 0x3a);  // tie, even above
  EXPECT_EQ(E4m3FromFloat(0x1.fp0f), 0x40);            // carries into the exponent
  EXPECT_EQ(E4m3FromFloat(0x1p-10f), 0x00);            // half of the least number
  EXPECT_EQ(E4m3FromFloat(0x1.8p-10f), 0x01);
  EXPECT_EQ(E4m3FromFloat(7.5f * 0x1p-9f), 0x08);  // the tie below the least normal one
  EXPECT_EQ(E4m3FromFloat(-1e-6f), 0x00);
  EXPECT_EQ(E4m3FromFloat(449.0f), 0x7e);
  EXPECT_EQ(E4m3FromFloat(-1e9f), 0xfe);
}

}  // namespace
}  // namespace kvferry::codec
