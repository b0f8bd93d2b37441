#include <cmath>
#include <functional>

#include "gmock/gmock.h"
#include "kvcodec/code_io.h"
#include "kvcodec/format.h"
#include "tests/kvcodec/kv_samples.h"

// One contract for the scalar reference and for SIMD.
namespace kvferry::codec {
namespace {

using testing::HasSubstr;

class QuantizeTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = MakeNamedBackend(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Backends, QuantizeTest, testing::ValuesIn(BackendNames()),
                         BackendTestName);

std::vector<std::byte> Bytes(const Backend& backend, const KvView& kv, const BlockSpec& spec) {
  GuardedPage page(PageBytes(spec, kv.kv_heads));
  const absl::Status status = backend.Quantize(kv, spec, {}, page.span());
  EXPECT_TRUE(status.ok()) << status << " " << SpecName(spec);
  page.Check();
  return {page.span().begin(), page.span().end()};
}

// Half a scale, and what the fp16 rounding of scale and min can add: the top code reaches
// levels * 2^-11 of the scale short, and values below the rounded min are clamped.
void ExpectClose(const std::vector<float>& got, const PlainHead& want, const BlockSpec& spec,
                 bool is_v) {
  const std::vector<float>& exact = is_v ? want.v : want.k;
  const int bits = is_v ? spec.v_bits : spec.k_bits;
  const auto levels = static_cast<float>((1 << bits) - 1);
  const int d = spec.head_dim;
  for (int token = 0; token < 64; ++token) {
    for (int channel = 0; channel < d; ++channel) {
      const int tokens = is_v ? 1 : spec.k_group_tokens;
      const int channels = is_v ? spec.v_group_channels : 1;
      float low = INFINITY, high = -INFINITY;
      for (int t = token / tokens * tokens; t < token / tokens * tokens + tokens; ++t) {
        for (int c = channel / channels * channels; c < channel / channels * channels + channels;
             ++c) {
          low = std::min(low, exact[t * d + c]);
          high = std::max(high, exact[t * d + c]);
        }
      }
      const float scale = (high - low) / levels;
      const float bound = scale * (0.5f + levels * 0x1p-11f) + std::fabs(low) * 0x1p-10f + 0x1p-24f;
      ASSERT_NEAR(got[token * d + channel], exact[token * d + channel], bound)
          << SpecName(spec) << (is_v ? " V" : " K") << " token " << token << " channel " << channel;
    }
  }
}

TEST_P(QuantizeTest, DequantizedValuesLieWithinHalfAScale) {
  for (const int bits : {1, 2, 3, 4, 8}) {
    for (const BlockSpec& spec : AllScalarSpecs(bits, bits)) {
      for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
        const KvSample kv = MakeKv(1, 64, spec.head_dim, type, 7);
        const std::vector<std::byte> page = Bytes(*backend_, kv.view, spec);
        std::vector<float> k(64 * spec.head_dim), v(k.size());
        ASSERT_TRUE(backend_->Dequantize(page, spec, {}, 1, k, v).ok());
        PlainHead exact;
        AppendRaw(kv.view, 0, exact);
        ExpectClose(k, exact, spec, false);
        ExpectClose(v, exact, spec, true);
      }
    }
  }
}

TEST_P(QuantizeTest, KAndVBitsAreIndependent) {
  for (const int k_bits : {1, 2, 3, 4, 8}) {
    for (const int v_bits : {1, 2, 3, 4, 8}) {
      const BlockSpec spec = ScalarSpec(128, k_bits, v_bits, 64, 128);
      const BlockSpec only_k = ScalarSpec(128, k_bits, k_bits, 64, 128);
      const KvSample kv = MakeKv(1, 64, 128, Raw16::kFp16, 9);
      const std::vector<std::byte> mixed = Bytes(*backend_, kv.view, spec);
      const std::vector<std::byte> same = Bytes(*backend_, kv.view, only_k);
      const int k_bytes = format::ScalarBlock(128, k_bits, v_bits, 64, 128).v_codes;
      EXPECT_TRUE(std::equal(mixed.begin(), mixed.begin() + k_bytes, same.begin()));
    }
  }
}

TEST_P(QuantizeTest, Raw16KeepsTheBitsAndInt8TheLargestValue) {
  for (const int head_dim : {64, 96, 128, 256}) {
    const KvSample kv = MakeKv(3, 64, head_dim, Raw16::kBf16, 5);
    const BlockSpec raw = {
        .kind = BlockKind::kRaw16, .raw_type = Raw16::kBf16, .head_dim = head_dim};
    const std::vector<std::byte> page = Bytes(*backend_, kv.view, raw);
    for (int head = 0; head < 3; ++head) {
      const std::byte* block = page.data() + head * BlockBytes(raw);
      const std::size_t side = std::size_t{64} * head_dim;
      EXPECT_EQ(std::memcmp(block, kv.k.data() + head * side, side * 2), 0);
      EXPECT_EQ(std::memcmp(block + side * 2, kv.v.data() + head * side, side * 2), 0);
    }
    const BlockSpec int8 = {.kind = BlockKind::kInt8, .head_dim = head_dim};
    const std::vector<std::byte> codes = Bytes(*backend_, kv.view, int8);
    std::vector<float> k(std::size_t{3} * 64 * head_dim), v(k.size());
    ASSERT_TRUE(backend_->Dequantize(codes, int8, {}, 3, k, v).ok());
    for (std::size_t i = 0; i < k.size(); ++i) {
      ASSERT_NEAR(k[i], FloatFromBf16(kv.k[i]), 0.12f);
      ASSERT_NEAR(v[i], FloatFromBf16(kv.v[i]), 0.03f);
    }
  }
}

TEST_P(QuantizeTest, Fp8IsWithinHalfAStepOfItsMantissa) {
  for (const int head_dim : {64, 96, 128, 256}) {
    const KvSample kv = MakeKv(1, 64, head_dim, Raw16::kFp16, 5);
    const BlockSpec spec = {.kind = BlockKind::kFp8, .head_dim = head_dim};
    const std::vector<std::byte> page = Bytes(*backend_, kv.view, spec);
    PlainHead got, exact;
    got.k.resize(std::size_t{64} * head_dim);
    got.v.resize(got.k.size());
    ASSERT_TRUE(backend_->Dequantize(page, spec, {}, 1, got.k, got.v).ok());
    AppendRaw(kv.view, 0, exact);
    for (std::size_t i = 0; i < got.k.size(); ++i) {
      // 2^-4 for the mantissa, a little for the fp16 scale; below 2^-6 of a scale, half of 2^-9.
      ASSERT_NEAR(got.k[i], exact.k[i], std::fabs(exact.k[i]) * 0.0630f + 1e-4f);
      ASSERT_NEAR(got.v[i], exact.v[i], std::fabs(exact.v[i]) * 0.0630f + 1e-4f);
    }
  }
}

// Takes off what quantizing has made of shifted keys.
void TakeZerosOff(int head_dim, std::vector<float>& exact, std::vector<float>& got) {
  for (int channel = 0; channel < head_dim; ++channel) {
    float low = INFINITY, high = -INFINITY;
    for (int i = channel; i < 64 * head_dim; i += head_dim) {
      low = std::min(low, exact[i]);
      high = std::max(high, exact[i]);
    }
    const float zero = FloatFromHalf(HalfFromFloat((low + high) * 0.5f));
    for (int i = channel; i < 64 * head_dim; i += head_dim) {
      exact[i] -= zero;
      got[i] -= zero;
    }
  }
}

// Every code is the nearest level, and of two the lower.
TEST_P(QuantizeTest, LutCodesAreTheNearestLevels) {
  for (const Lut& lut : kLuts) {
    const BlockSpec spec = LutSpec(lut.table, 96);
    KvSample kv = MakeKv(1, 64, 96, Raw16::kFp16, 5);
    const std::vector<std::byte> page = Bytes(*backend_, kv.view, spec);
    PlainHead got, exact;
    got.k.resize(std::size_t{64} * 96);
    got.v.resize(got.k.size());
    ASSERT_TRUE(backend_->Dequantize(page, spec, {}, 1, got.k, got.v).ok());
    AppendRaw(kv.view, 0, exact);
    if (lut.shifted_keys) TakeZerosOff(96, exact.k, got.k);
    for (int i = 0; i < 64 * 96; ++i) {
      for (const bool is_v : {false, true}) {
        const std::vector<float>& values = is_v ? exact.v : exact.k;
        double unit = 0;  // of the token
        for (int c = i / 96 * 96; c < i / 96 * 96 + 96; ++c) {
          unit = lut.scale == LutScale::kLargest ? std::max(unit, std::fabs(double{values[c]}))
                                                 : unit + double{values[c]} * values[c] / 96;
        }
        if (lut.scale == LutScale::kRms) unit = std::sqrt(unit);
        double nearest = INFINITY;
        for (int level = 0; level < lut.count(); ++level) {
          nearest = std::min(nearest, std::fabs(values[i] - unit * lut.levels[level]));
        }
        // A fp16 scale moves every level by 2^-11 of itself.
        ASSERT_NEAR(std::fabs((is_v ? got.v : got.k)[i] - values[i]), nearest, unit * 2.2 * 0x1p-10)
            << lut.name << " value " << i;
      }
    }
  }
}

TEST_P(QuantizeTest, LutTiesGoToTheLowerLevelAndZeroHasACode) {
  for (const Lut& lut : kLuts) {
    if (lut.scale != LutScale::kLargest || lut.shifted_keys) continue;
    const BlockSpec spec = LutSpec(lut.table, 64);
    KvSample kv = MakeKv(1, 64, 64, Raw16::kFp16, 1);
    std::fill(kv.k.begin(), kv.k.end(), HalfFromFloat(0));
    std::fill(kv.v.begin(), kv.v.end(), HalfFromFloat(-0.0f));
    for (int token = 0; token < 32; ++token) {  // the largest magnitude is 1, so is the scale
      kv.k[token * 64] = HalfFromFloat(token % 2 == 0 ? 1.0f : -1.0f);
      for (int i = 0; i + 1 < lut.count(); ++i)
        kv.k[token * 64 + 1 + i] = HalfFromFloat(lut.middle(i));
    }
    const std::vector<std::byte> page = Bytes(*backend_, kv.view, spec);
    std::vector<float> k(64 * 64), v(k.size());
    ASSERT_TRUE(backend_->Dequantize(page, spec, {}, 1, k, v).ok());
    for (int token = 0; token < 64; ++token) {
      EXPECT_EQ(k[token * 64], token >= 32 ? 0.0f : token % 2 == 0 ? 1.0f : -1.0f);
      for (int i = 0; token < 32 && i + 1 < lut.count(); ++i) {
        if (FloatFromHalf(HalfFromFloat(lut.middle(i))) != lut.middle(i)) continue;
        EXPECT_EQ(k[token * 64 + 1 + i], lut.levels[i]) << lut.name << " middle " << i;
      }
      EXPECT_EQ(k[token * 64 + 63], 0.0f);
      EXPECT_EQ(v[token * 64 + 5], 0.0f);
    }
  }
}

TEST_P(QuantizeTest, LutScalesOutsideFp16AreNamed) {
  for (const Lut& lut : kLuts) {
    KvSample kv = MakeKv(2, kBlockTokens, 64, Raw16::kBf16, 2);
    kv.v[(kBlockTokens + 9) * 64 + 50] = ToRaw16(Raw16::kBf16, 3e38f);
    const BlockSpec spec = LutSpec(lut.table, 64);
    GuardedPage page(PageBytes(spec, 2));
    const absl::Status status = backend_->Quantize(kv.view, spec, kBadValueOrigin, page.span());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("layer 3, head 9, V, token 1009: the scale"));
  }
}

// Where zeros are exact, all but the zeros is what the same table makes of keys around zero.
TEST_P(QuantizeTest, ShiftedKeysAreKeysWithoutTheirZeros) {
  for (const int d : {64, 96, 128, 256}) {
    KvSample plain = MakeKv(1, 64, d, Raw16::kFp16, 5), shifted = plain;
    shifted.view.k = shifted.k.data();
    shifted.view.v = shifted.v.data();
    plain.view.k = plain.k.data();
    plain.view.v = plain.v.data();
    const auto zero_of = [](int channel) { return static_cast<float>(channel % 17 - 8); };
    std::mt19937 random(3);
    for (int i = 0; i < 64 * d; ++i) {  // steps of 1/64 from -1 to 1
      const int token = i / d;
      const int step = token < 2 ? 64 - 128 * token : static_cast<int>(random() % 129) - 64;
      plain.k[i] = HalfFromFloat(static_cast<float>(step) / 64);
      shifted.k[i] = HalfFromFloat(static_cast<float>(step) / 64 + zero_of(i % d));
    }
    const std::vector<std::byte> want = Bytes(*backend_, plain.view, LutSpec(LutTable::kNf4, d));
    const std::vector<std::byte> got = Bytes(*backend_, shifted.view, LutSpec(LutTable::kAnf4, d));
    const format::LutLayout at = format::LutBlock(d, 4, true);
    EXPECT_TRUE(std::equal(want.begin(), want.begin() + at.k_zero, got.begin())) << d;
    EXPECT_TRUE(std::equal(want.begin() + at.k_zero, want.end(), got.begin() + at.v_codes)) << d;
    for (int channel = 0; channel < d; ++channel) {
      EXPECT_EQ(LoadU16(got.data() + at.k_zero, channel), HalfFromFloat(zero_of(channel)));
    }
    for (int i = at.k_zero + 2 * d; i < at.v_codes; ++i) EXPECT_EQ(got[i], std::byte{0});
  }
}

TEST_P(QuantizeTest, ShiftedKeysAreCloserWhereChannelsAreFarFromZero) {
  KvSample kv = MakeKv(1, 64, 128, Raw16::kBf16, 5);
  for (int i = 0; i < 64 * 128; i += 32)
    kv.k[i] = ToRaw16(Raw16::kBf16, FloatFromBf16(kv.k[i]) + 40);
  double errors[2] = {};
  for (const LutTable table : {LutTable::kNf4, LutTable::kAnf4}) {
    const BlockSpec spec = LutSpec(table, 128);
    std::vector<float> k(64 * 128), v(k.size());
    ASSERT_TRUE(backend_->Dequantize(Bytes(*backend_, kv.view, spec), spec, {}, 1, k, v).ok());
    for (int i = 0; i < 64 * 128; ++i) {
      errors[table == LutTable::kAnf4] += std::fabs(k[i] - FloatFromBf16(kv.k[i]));
    }
  }
  EXPECT_LT(errors[1], 0.5 * errors[0]);
}

TEST_P(QuantizeTest, ZerosOutsideFp16AreNamed) {
  KvSample kv = MakeKv(2, kBlockTokens, 64, Raw16::kBf16, 2);
  const auto put = [&](int token, int channel, float value) {
    kv.k[(kBlockTokens + token) * 64 + channel] = ToRaw16(Raw16::kBf16, value);
  };
  const BlockSpec spec = LutSpec(LutTable::kAnf4, 64);
  GuardedPage page(PageBytes(spec, 2));
  const auto expect_named = [&](const std::string& where) {
    const absl::Status status = backend_->Quantize(kv.view, spec, kBadValueOrigin, page.span());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(where + ": the scale, min or zero point"));
    page.Check();
  };
  put(9, 50, -1e5f);  // the zero and what is left fit
  EXPECT_TRUE(backend_->Quantize(kv.view, spec, kBadValueOrigin, page.span()).ok());
  put(3, 7, 3e38f);
  put(4, 7, -3e38f);
  expect_named("layer 3, head 9, K, token 1003");
  put(9, 50, 3e38f);
  put(0, 60, 3e38f);
  expect_named("layer 3, head 9, K, channel 50");
}

TEST_P(QuantizeTest, HeadsAndStridesAreHonoured) {
  // Tokens outside, heads inside: [tokens, kv_heads, head_dim].
  const int heads = 3, d = 64;
  KvSample kv = MakeKv(1, 64 * heads, d, Raw16::kFp16, 3);
  kv.view.kv_heads = heads;
  kv.view.tokens = 64;
  kv.view.head_stride = d;
  kv.view.token_stride = heads * d;
  const BlockSpec spec = ScalarSpec(d, 4, 4, 64, 64);
  const std::vector<std::byte> page = Bytes(*backend_, kv.view, spec);
  for (int head = 0; head < heads; ++head) {
    KvView one = kv.view;
    one.kv_heads = 1;
    one.k += head * d;
    one.v += head * d;
    const std::vector<std::byte> block = Bytes(*backend_, one, spec);
    EXPECT_TRUE(std::equal(block.begin(), block.end(), page.begin() + head * BlockBytes(spec)));
  }
}

TEST_P(QuantizeTest, ConstantGroupsAndZerosHaveOneForm) {
  for (const float value : {0.0f, -0.0f, 1.5f, -3e-7f, 1e-40f}) {
    for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
      const BlockSpec spec = ScalarSpec(64, 2, 4, 32, 32);
      KvSample kv = MakeKv(1, 64, 64, type, 1);
      std::fill(kv.k.begin(), kv.k.end(), ToRaw16(type, value));
      std::fill(kv.v.begin(), kv.v.end(), ToRaw16(type, value));
      const std::vector<std::byte> page = Bytes(*backend_, kv.view, spec);
      const format::ScalarLayout at = format::ScalarBlock(64, 2, 4, 32, 32);
      for (int i = at.k_codes; i < at.k_scale; ++i) EXPECT_EQ(page[i], std::byte{0});
      for (int i = 0; i < 128; ++i) {
        EXPECT_EQ(LoadU16(page.data() + at.k_scale, i), 0) << value;
        EXPECT_NE(LoadU16(page.data() + at.k_min, i), 0x8000) << value;
        EXPECT_NE(LoadU16(page.data() + at.v_min, i), 0x8000) << value;
      }
    }
  }
}

TEST_P(QuantizeTest, WhatCannotBeStoredIsNamed) {
  for (const BadValue& bad : BadValues()) {
    const KvSample kv = bad.Sample();
    for (const BlockSpec& spec :
         {ScalarSpec(128, 2, 2, 64, 128), ScalarSpec(128, 3, 1, 32, 32),
          BlockSpec{.kind = BlockKind::kInt8, .head_dim = 128},
          BlockSpec{.kind = BlockKind::kFp8, .head_dim = 128}, LutSpec(LutTable::kLm2, 128),
          BlockSpec{.kind = BlockKind::kRaw16, .raw_type = Raw16::kBf16, .head_dim = 128}}) {
      if (!bad.IsRefusedBy(spec.kind)) continue;
      GuardedPage page(PageBytes(spec, 2));
      const absl::Status status = backend_->Quantize(kv.view, spec, kBadValueOrigin, page.span());
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.error << SpecName(spec);
      EXPECT_THAT(std::string(status.message()), HasSubstr(bad.error)) << SpecName(spec);
      page.Check();
    }
  }
}

TEST_P(QuantizeTest, SeveralPagesAreThePagesOneByOne) {
  const BlockSpec spec = ScalarSpec(64, 4, 2, 64, 64);
  const KvSample kv = MakeKv(2, 3 * kBlockTokens + 8, 64, Raw16::kBf16, 11);
  const std::size_t page = PageBytes(spec, 2);
  GuardedPage all(3 * page), one(page);
  const KvView blocks = kv.view.Tokens(8, 3 * kBlockTokens);
  ASSERT_TRUE(backend_->QuantizePages(blocks, spec, {}, all.span()).ok());
  all.Check();
  for (int i = 0; i < 3; ++i) {
    const KvView block = blocks.Tokens(i * kBlockTokens, kBlockTokens);
    ASSERT_TRUE(backend_->Quantize(block, spec, {}, one.span()).ok());
    EXPECT_EQ(std::memcmp(all.data() + i * page, one.data(), page), 0) << i;
  }
  KvSample broken = kv;
  broken.view.k = broken.k.data();
  broken.view.v = broken.v.data();
  broken.v[static_cast<std::size_t>(8 + kBlockTokens + 5) * 64] = 0x7fc0;
  const absl::Status status =
      backend_->QuantizePages(broken.view.Tokens(8, 2 * kBlockTokens), spec,
                              {.layer = 3, .token_begin = 8}, all.span().first(2 * page));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("token 77"));
  EXPECT_FALSE(backend_->QuantizePages(kv.view.Tokens(0, 65), spec, {}, all.span()).ok());
  EXPECT_FALSE(backend_->QuantizePages(blocks, spec, {}, all.span().first(page)).ok());
}

TEST_P(QuantizeTest, TokensAreCopiedHeadByHead) {
  const KvSample kv = MakeKv(3, 10, 64, Raw16::kFp16, 12);
  const std::size_t bytes = Raw16Bytes(4, 3, 64);
  GuardedPage out(bytes);
  ASSERT_TRUE(backend_->CopyTokens(kv.view.Tokens(5, 4), out.span()).ok());
  out.Check();
  for (int side = 0; side < 2; ++side) {
    const std::vector<std::uint16_t>& values = side == 0 ? kv.k : kv.v;
    for (int head = 0; head < 3; ++head) {
      EXPECT_EQ(std::memcmp(out.data() + side * bytes / 2 + head * bytes / 6,
                            values.data() + (head * 10 + 5) * 64, bytes / 6),
                0);
    }
  }
  EXPECT_FALSE(backend_->CopyTokens(kv.view, out.span()).ok());
}

TEST_P(QuantizeTest, WrongShapesAreRefused) {
  const BlockSpec spec = ScalarSpec(64, 4, 4, 64, 64);
  KvSample kv = MakeKv(2, 64, 64, Raw16::kFp16, 4);
  GuardedPage page(PageBytes(spec, 2));
  const auto expect_refused = [&](const KvView& view, const BlockSpec& with,
                                  std::span<std::byte> out) {
    EXPECT_EQ(backend_->Quantize(view, with, {}, out).code(), absl::StatusCode::kInvalidArgument);
  };
  expect_refused(kv.view.Tokens(0, 63), spec, page.span());
  expect_refused(kv.view, spec, page.span().subspan(128));
  expect_refused(kv.view, ScalarSpec(128, 4, 4, 64, 64), page.span());
  expect_refused(kv.view, ScalarSpec(64, 5, 4, 64, 64), page.span());
  expect_refused(kv.view, {.kind = BlockKind::kRaw16, .raw_type = Raw16::kBf16, .head_dim = 64},
                 page.span());
  KvView null_view = kv.view;
  null_view.v = nullptr;
  expect_refused(null_view, spec, page.span());
  GuardedPage larger(PageBytes(spec, 2) + 128);
  expect_refused(kv.view, spec, larger.span().subspan(64, PageBytes(spec, 2)));
  std::vector<float> k(2 * 64 * 64), v(k.size());
  EXPECT_FALSE(backend_->Dequantize(page.span(), spec, {}, 1, k, v).ok());
  EXPECT_FALSE(backend_->Dequantize(page.span(), spec, {}, 2, std::span(k).subspan(1), v).ok());
}

// Every target agrees with the reference on every byte, on ordinary and on awkward values.
TEST_P(QuantizeTest, WritesTheBytesOfTheReference) {
  const std::unique_ptr<Backend> scalar = MakeBackend(true);
  const std::vector<std::function<float(std::mt19937&)>> sources = {
      [](std::mt19937& r) { return std::normal_distribution<float>()(r); },
      [](std::mt19937& r) { return std::normal_distribution<float>()(r) * 5e3f; },
      [](std::mt19937& r) { return std::normal_distribution<float>()(r) * 3e-7f; },
      [](std::mt19937& r) { return std::normal_distribution<float>()(r) * 1e-5f; },
      [](std::mt19937& r) { return static_cast<float>(static_cast<int>(r() % 3) - 1); },
      [](std::mt19937& r) { return r() % 2 == 0 ? 0.0f : -0.0f; },
      [](std::mt19937& r) { return r() % 50 == 0 ? 9e3f : 1.0f; },
  };
  for (const int bits : {1, 2, 3, 4, 8}) {
    std::vector<BlockSpec> specs = AllScalarSpecs(bits, bits);
    specs.push_back({.kind = BlockKind::kInt8, .head_dim = 96});
    specs.push_back({.kind = BlockKind::kFp8, .head_dim = 96});
    for (const Lut& lut : kLuts) {
      for (const int head_dim : {64, 96, 128, 256}) specs.push_back(LutSpec(lut.table, head_dim));
    }
    for (const BlockSpec& spec : specs) {
      for (std::size_t source = 0; source < sources.size(); ++source) {
        const Raw16 type = (source + bits) % 2 == 0 ? Raw16::kFp16 : Raw16::kBf16;
        std::mt19937 random(static_cast<std::uint32_t>(source * 100 + bits));
        KvSample kv = MakeKv(1, 64, spec.head_dim, type, 1);
        for (std::uint16_t& value : kv.k) value = ToRaw16(type, sources[source](random));
        for (std::uint16_t& value : kv.v) value = ToRaw16(type, sources[source](random));
        ASSERT_EQ(Bytes(*backend_, kv.view, spec), Bytes(*scalar, kv.view, spec))
            << SpecName(spec) << " source " << source;
      }
    }
  }
}

}  // namespace
}  // namespace kvferry::codec
