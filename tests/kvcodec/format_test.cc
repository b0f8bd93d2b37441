#include "kvcodec/format.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "kvcodec/half.h"
#include "kvcodec/lut.h"

namespace kvferry::codec {
namespace {

constexpr std::array kBits = {1, 2, 3, 4, 8};
constexpr std::array kHeadDims = {64, 96, 128, 256};

// Every bit of a code region belongs to exactly one bit of one code.
void ExpectBijection(format::CodePlace (*place)(int, int, int, int), int bits, int head_dim) {
  std::vector<int> owners(format::CodeBytes(bits, head_dim) * 8, 0);
  for (int token = 0; token < format::kTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      const format::CodePlace at = place(bits, head_dim, token, channel);
      for (int i = 0; i < bits; ++i) {
        const int bit = at.spread == 0 ? at.word * 32 + at.shift + i
                                       : (at.word + i * at.spread) * 32 + at.shift;
        ASSERT_GE(bit, 0);
        ASSERT_LT(bit, static_cast<int>(owners.size()));
        ++owners[bit];
      }
    }
  }
  EXPECT_THAT(owners, testing::Each(1)) << bits << " bits, head_dim " << head_dim;
}

TEST(FormatTest, CodesTileTheirRegion) {
  for (const int bits : kBits) {
    for (const int head_dim : kHeadDims) {
      ExpectBijection(format::KPlace, bits, head_dim);
      ExpectBijection(format::VPlace, bits, head_dim);
    }
  }
}

TEST(FormatTest, ScaleOrdersArePermutations) {
  std::array<int, format::kTokens> of_k{}, of_v{};
  for (int token = 0; token < format::kTokens; ++token) {
    ++of_k[format::KScalePosition(token)];
    ++of_v[format::VScalePosition(token)];
  }
  EXPECT_THAT(of_k, testing::Each(1));
  EXPECT_THAT(of_v, testing::Each(1));
}

// What docs/format.md promises of every table: fp16 holds levels exactly, in ascending order.
TEST(LutTest, LevelsAreAscendingHalves) {
  for (const Lut& lut : kLuts) {
    EXPECT_EQ(FindLut(lut.table), &lut);
    for (int i = 0; i < lut.count(); ++i) {
      EXPECT_EQ(FloatFromHalf(HalfFromFloat(lut.levels[i])), lut.levels[i]) << lut.name;
      if (i > 0) {
        EXPECT_LT(lut.levels[i - 1], lut.levels[i]) << lut.name;
      }
    }
  }
  EXPECT_EQ(FindLut(LutTable{9}), nullptr);
}

// A lane of mma.sync reads the words of its own fragment: tokens g and g + 8 of K, channels 4g.. of
// V.
TEST(FormatTest, LanesFollowTheFragments) {
  for (int token = 0; token < 64; ++token) {
    for (int channel = 0; channel < 128; ++channel) {
      const format::CodePlace k = format::KPlace(4, 128, token, channel);
      EXPECT_EQ(k.word / 4 % 32, token % 8 * 4 + channel / 8 % 4);
      EXPECT_EQ(k.word % 4, token / 16);
      const format::CodePlace v = format::VPlace(4, 128, token, channel);
      EXPECT_EQ(v.word / 4 % 32, channel / 4 % 8 * 4 + token / 2 % 4);
      EXPECT_EQ(v.word / 256, token / 16);
    }
  }
}

TEST(HalfTest, EveryHalfRoundTrips) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = FloatFromHalf(half);
    if (std::isnan(value)) {
      EXPECT_FALSE(HalfIsFinite(half));
      continue;
    }
    EXPECT_EQ(HalfFromFloat(value), half);
  }
}

TEST(HalfTest, RoundsToNearestEven) {
  EXPECT_EQ(HalfFromFloat(1.0f + 0x1p-11f), 0x3c00);             // tie, even below
  EXPECT_EQ(HalfFromFloat(1.0f + 3 * 0x1p-11f), 0x3c02);         // tie, even above
  EXPECT_EQ(HalfFromFloat(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);  // above the tie
  EXPECT_EQ(HalfFromFloat(0x1p-25f), 0x0000);                    // half of the least subnormal
  EXPECT_EQ(HalfFromFloat(0x1.8p-25f), 0x0001);
  EXPECT_EQ(HalfFromFloat(-0x1p-25f), 0x8000);
  EXPECT_EQ(HalfFromFloat(0x1.ff8p-15f), 0x03ff);
  EXPECT_EQ(HalfFromFloat(0x1.ffcp-15f), 0x0400);  // a subnormal tie carries into normal
  EXPECT_EQ(HalfFromFloat(65504.0f), 0x7bff);
  EXPECT_EQ(HalfFromFloat(65519.9f), 0x7bff);
  EXPECT_EQ(HalfFromFloat(65520.0f), 0x7c00);
  EXPECT_EQ(HalfFromFloat(-1e9f), 0xfc00);
  EXPECT_EQ(HalfFromFloat(NAN) & 0x7c00, 0x7c00);
}

}  // namespace
}  // namespace kvferry::codec
