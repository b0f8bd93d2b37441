#include "kernels/quantize_block.h"

#include <cmath>
#include <functional>

#include "common/crc32c.h"
#include "gmock/gmock.h"
#include "kvcodec/format.h"
#include "kvcodec/lut.h"
#include "tests/kernels/gpu_blocks.h"
#include "tests/kvcodec/codebook_samples.h"
#include "tests/kvcodec/golden_cases.h"

// The GPU makes the bytes of the CPU.
namespace kvferry::kernels {
namespace {

using codec::AllScalarSpecs;
using codec::BlockKind;
using codec::BlockSpec;
using codec::kBlockTokens;
using codec::KvSample;
using codec::MakeKv;
using codec::Raw16;
using codec::ScalarSpec;
using codec::SpecName;
using codec::ToRaw16;
using testing::HasSubstr;

std::vector<BlockSpec> LutSpecs(int head_dim) {
  std::vector<BlockSpec> specs;
  for (const codec::Lut& lut : codec::kLuts) {
    specs.push_back({.kind = BlockKind::kLut, .head_dim = head_dim, .table = lut.table});
  }
  return specs;
}

class QuantizeBlockTest : public GpuBlocksTest {
 protected:
  void ExpectCpuBytes(const KvSample& kv, const BlockSpec& spec, const std::string& what) {
    const std::size_t page = PageBytes(spec, kv.view.kv_heads);
    const Made made = Quantize(kv.view, kv.k, kv.v, spec);
    ASSERT_EQ(made.first_fault, kNoFault) << what;
    codec::GuardedPage want(page);
    for (int i = 0; i < kv.view.tokens / kBlockTokens; ++i) {
      ASSERT_TRUE(
          cpu_->Quantize(kv.view.Tokens(i * kBlockTokens, kBlockTokens), spec, {}, want.span())
              .ok())
          << what;
      for (std::size_t byte = 0; byte < page; ++byte) {
        ASSERT_EQ(static_cast<int>(made.pages[page * i + byte]),
                  static_cast<int>(want.data()[byte]))
            << what << ": page " << i << ", byte " << byte << " of " << page;
      }
    }
    ASSERT_EQ(made.crc, Crc32c(made.pages)) << what;
  }

  std::unique_ptr<codec::Backend> cpu_ = codec::MakeBackend(true);
};

TEST_F(QuantizeBlockTest, EveryVariantWritesTheBytesOfTheCpu) {
  for (const int bits : {1, 2, 3, 4, 8}) {
    for (BlockSpec spec : AllScalarSpecs(bits, bits)) {
      for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
        const KvSample kv = MakeKv(2, 2 * kBlockTokens, spec.head_dim, type, 7);
        ExpectCpuBytes(kv, spec, SpecName(spec));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(QuantizeBlockTest, KAndVBitsAreIndependent) {
  for (const int head_dim : {64, 96, 128, 256}) {
    const KvSample kv = MakeKv(1, kBlockTokens, head_dim, Raw16::kBf16, 9);
    for (const int k_bits : {1, 2, 3, 4, 8}) {
      for (const int v_bits : {1, 2, 3, 4, 8}) {
        const BlockSpec spec = ScalarSpec(head_dim, k_bits, v_bits, 64, 32);
        ExpectCpuBytes(kv, spec, SpecName(spec));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(QuantizeBlockTest, KindsWithAScalePerToken) {
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
      const KvSample kv = MakeKv(3, kBlockTokens, head_dim, type, 5);
      std::vector<BlockSpec> specs = LutSpecs(head_dim);
      for (const BlockKind kind : {BlockKind::kInt8, BlockKind::kFp8, BlockKind::kRaw16}) {
        specs.push_back({.kind = kind, .raw_type = type, .head_dim = head_dim});
      }
      for (const BlockSpec& spec : specs) {
        ExpectCpuBytes(kv, spec, SpecName(spec));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(QuantizeBlockTest, CoupledBlocks) {
  for (const codec::Coupling& coupling : {codec::Coupling{2, 8}, {4, 8}, {8, 8}, {8, 10}, {2, 4}}) {
    for (const int head_dim : {64, 96, 128, 256}) {
      const auto books = codec::MakeCodebooks({3, 4, head_dim, coupling}, 3);
      const BlockSpec spec = CoupledSpec(*books, 2);
      for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
        const KvSample kv = MakeKv(2, 2 * kBlockTokens, head_dim, type, 5);
        const codec::BlockOrigin origin = {.layer = 2, .kv_head_begin = 1, .token_begin = 5004};
        const Made made = Quantize(kv.view, kv.k, kv.v, spec, origin);
        ASSERT_EQ(made.first_fault, kNoFault);
        codec::GuardedPage want(made.pages.size());
        ASSERT_TRUE(cpu_->QuantizePages(kv.view, spec, origin, want.span()).ok());
        ASSERT_EQ(std::memcmp(made.pages.data(), want.data(), made.pages.size()), 0)
            << coupling.channels << "c" << coupling.bits << "b, head_dim " << head_dim;
        ASSERT_EQ(made.crc, Crc32c(made.pages));
      }
    }
  }
}

TEST_F(QuantizeBlockTest, AwkwardValues) {
  using Random = std::mt19937;
  const std::vector<std::function<float(Random&)>> sources = {
      [](Random& r) { return std::normal_distribution<float>()(r) * 5e3f; },
      [](Random& r) { return std::normal_distribution<float>()(r) * 3e-7f; },
      [](Random& r) { return std::normal_distribution<float>()(r) * 1e-5f; },
      [](Random& r) { return std::normal_distribution<float>()(r) * 1e-40f; },
      [](Random& r) { return static_cast<float>(static_cast<int>(r() % 3) - 1); },
      [](Random& r) { return r() % 2 == 0 ? 0.0f : -0.0f; },
      [](Random& r) { return r() % 50 == 0 ? 1e4f : 1.0f; },
      [](Random&) { return -1.5f; },
      [](Random& r) { return static_cast<float>(r() % 257) * 0x1p-24f; },
  };
  for (const int bits : {1, 2, 3, 4, 8}) {
    std::vector<BlockSpec> specs = AllScalarSpecs(bits, bits);
    specs.push_back({.kind = BlockKind::kInt8, .head_dim = 96});
    specs.push_back({.kind = BlockKind::kFp8, .head_dim = 64});
    for (const BlockSpec& spec : LutSpecs(bits % 2 == 0 ? 96 : 128)) specs.push_back(spec);
    for (const BlockSpec& spec : specs) {
      for (std::size_t source = 0; source < sources.size(); ++source) {
        const Raw16 type = (source + bits) % 2 == 0 ? Raw16::kFp16 : Raw16::kBf16;
        Random random(static_cast<std::uint32_t>(source * 100 + bits));
        KvSample kv = MakeKv(1, kBlockTokens, spec.head_dim, type, 1);
        for (std::uint16_t& value : kv.k) value = ToRaw16(type, sources[source](random));
        for (std::uint16_t& value : kv.v) value = ToRaw16(type, sources[source](random));
        ExpectCpuBytes(kv, spec, SpecName(spec) + " source " + std::to_string(source));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(QuantizeBlockTest, GoldenBlocks) {
  const std::vector<std::byte> golden = codec::LoadGoldenBlocks();
  const std::vector<codec::GoldenCase> cases = codec::LoadGoldenCases();
  ASSERT_GT(cases.size(), 100u) << "run from the repository root";
  for (const codec::GoldenCase& c : cases) {
    const KvSample kv = codec::MakeGoldenInput(c);
    const Made made = Quantize(kv.view, kv.k, kv.v, c.spec, c.origin);
    ASSERT_EQ(made.pages.size(), c.bytes) << c.line;
    for (std::size_t i = 0; i < c.bytes; ++i) {
      ASSERT_EQ(static_cast<int>(made.pages[i]), static_cast<int>(golden[c.offset + i]))
          << c.line << ", byte " << i;
    }
  }
}

TEST_F(QuantizeBlockTest, HeadsAndStridesAreHonoured) {
  // Tokens outside, heads inside: [tokens, kv_heads, head_dim].
  KvSample kv = MakeKv(1, 2 * kBlockTokens * 3, 128, Raw16::kBf16, 3);
  kv.view.kv_heads = 3;
  kv.view.tokens = 2 * kBlockTokens;
  kv.view.head_stride = 128;
  kv.view.token_stride = 3 * 128;
  ExpectCpuBytes(kv, ScalarSpec(128, 4, 2, 64, 128), "tokens outside");
}

TEST_F(QuantizeBlockTest, PagesOfSeveralChunksAndBitsInOneLaunch) {
  const KvSample kv = MakeKv(2, 3 * kBlockTokens, 128, Raw16::kBf16, 21);
  const DeviceBuffer k = Upload(kv.k), v = Upload(kv.v);
  const std::vector<BlockSpec> specs = {ScalarSpec(128, 2, 2, 64, 128),
                                        ScalarSpec(128, 8, 4, 64, 128),
                                        ScalarSpec(128, 1, 3, 64, 128)};
  std::vector<DeviceBuffer> pages;
  std::vector<QuantizeItem> items;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    pages.push_back(Filled(PageBytes(specs[i], 2)));
    items.push_back({.k = k.as<std::uint16_t>(),
                     .v = v.as<std::uint16_t>(),
                     .page = pages[i].data(),
                     .head_stride = kv.view.head_stride,
                     .token_stride = static_cast<std::int32_t>(kv.view.token_stride),
                     .first_row = static_cast<int>(i) * kBlockTokens,
                     .k_bits = static_cast<std::uint8_t>(specs[i].k_bits),
                     .v_bits = static_cast<std::uint8_t>(specs[i].v_bits),
                     .chunk = static_cast<std::uint32_t>(i)});
  }
  const DeviceBuffer list = Upload(items);
  const DeviceBuffer residues = Upload(std::vector<std::uint32_t>(3, 0));
  const DeviceBuffer fault = Upload(std::vector<std::uint64_t>{kNoFault});
  QuantizeParams params = ParamsOf(specs[1], Raw16::kBf16, 2);
  params.items = list.as<QuantizeItem>();
  params.max_items = 3;
  params.first_fault = fault.as<std::uint64_t>();
  params.residues = residues.as<std::uint32_t>();
  params.tables = tables();
  ASSERT_TRUE(LaunchQuantizeBlock(params, stream()).ok());
  const std::vector<std::uint32_t> sums = Download<std::uint32_t>(residues, 3);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const std::size_t bytes = PageBytes(specs[i], 2);
    codec::GuardedPage want(bytes);
    ASSERT_TRUE(cpu_->Quantize(kv.view.Tokens(static_cast<int>(i) * kBlockTokens, kBlockTokens),
                               specs[i], {}, want.span())
                    .ok());
    const std::vector<std::byte> got = Download<std::byte>(pages[i], bytes);
    EXPECT_EQ(std::memcmp(got.data(), want.data(), bytes), 0) << SpecName(specs[i]);
    EXPECT_EQ(FinishChunkCheck(sums[i], bytes), Crc32c(got)) << SpecName(specs[i]);
  }
}

TEST_F(QuantizeBlockTest, WhatCannotBeStoredIsNamedAsOnTheCpu) {
  const std::vector<codec::BlockOrigin> origins = {codec::kBadValueOrigin};
  for (const codec::BadValue& bad : codec::BadValues()) {
    const KvSample kv = bad.Sample();
    for (const BlockSpec& spec :
         {ScalarSpec(128, 2, 2, 64, 128), ScalarSpec(128, 3, 1, 32, 32),
          BlockSpec{.kind = BlockKind::kInt8, .head_dim = 128},
          BlockSpec{.kind = BlockKind::kFp8, .head_dim = 128}, LutSpecs(128)[0],
          BlockSpec{.kind = BlockKind::kRaw16, .raw_type = Raw16::kBf16, .head_dim = 128}}) {
      if (!bad.IsRefusedBy(spec.kind)) continue;
      const Made made = Quantize(kv.view, kv.k, kv.v, spec);
      const absl::Status status = FaultStatus(made.first_fault, origins);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << SpecName(spec);
      EXPECT_THAT(std::string(status.message()), HasSubstr(bad.error)) << SpecName(spec);
    }
  }
}

// As tests/kvcodec has it of the CPU: a zero comes before the scales that it spoils.
TEST_F(QuantizeBlockTest, ZerosOutsideFp16AreNamed) {
  const std::vector<codec::BlockOrigin> origins = {codec::kBadValueOrigin};
  KvSample kv = MakeKv(2, kBlockTokens, 96, Raw16::kBf16, 2);
  const auto put = [&](int token, int channel, float value) {
    kv.k[(kBlockTokens + token) * 96 + channel] = ToRaw16(Raw16::kBf16, value);
  };
  const BlockSpec spec = {.kind = BlockKind::kLut, .head_dim = 96, .table = codec::LutTable::kAnf4};
  put(9, 50, -1e5f);  // the zero and what is left fit
  ExpectCpuBytes(kv, spec, "a large key");
  put(0, 7, 3e38f);  // a scale is outside
  put(4, 7, -3e38f);
  put(9, 50, 3e38f);
  put(0, 60, 3e38f);
  const Made zero = Quantize(kv.view, kv.k, kv.v, spec);
  EXPECT_THAT(std::string(FaultStatus(zero.first_fault, origins).message()),
              HasSubstr("layer 3, head 9, K, channel 50: the scale, min or zero point"));
  put(20, 80, NAN);
  const Made value = Quantize(kv.view, kv.k, kv.v, spec);
  EXPECT_THAT(std::string(FaultStatus(value.first_fault, origins).message()),
              HasSubstr("layer 3, head 9, K, token 1020, channel 80: the value"));
}

TEST_F(QuantizeBlockTest, TheFirstOfManyFaultsIsNamed) {
  KvSample kv = MakeKv(4, 4 * kBlockTokens, 128, Raw16::kBf16, 2);
  for (std::size_t i = 5000; i < kv.k.size(); i += 37) kv.k[i] = 0x7fc0;
  for (std::size_t i = 100; i < kv.v.size(); i += 41) kv.v[i] = 0x7f80;
  const std::vector<codec::BlockOrigin> origins = {
      {.token_begin = 0}, {.token_begin = 64}, {.token_begin = 128}, {.token_begin = 192}};
  for (int run = 0; run < 3; ++run) {
    const Made made = Quantize(kv.view, kv.k, kv.v, ScalarSpec(128, 2, 2, 64, 128));
    EXPECT_THAT(std::string(FaultStatus(made.first_fault, origins).message()),
                HasSubstr("layer 0, head 0, K, token 39, channel 8: the value"));
  }
}

TEST_F(QuantizeBlockTest, WhatIsNotCompiledOrWrongIsRefused) {
  const DeviceBuffer memory = Filled(4096);
  QuantizeParams params = ParamsOf(ScalarSpec(128, 2, 2, 64, 128), Raw16::kBf16, 2);
  params.items = memory.as<QuantizeItem>();
  params.first_fault = memory.as<std::uint64_t>();
  EXPECT_TRUE(LaunchQuantizeBlock(params, stream()).ok()) << "no items";
  QuantizeParams other = params;
  other.head_dim = 80;
  const absl::Status status = LaunchQuantizeBlock(other, stream());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("head_dim 64, 96, 128, 256"));
  other = params;
  other.kind = BlockKind::kLut;  // without a table
  EXPECT_EQ(LaunchQuantizeBlock(other, stream()).code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(SupportsQuantize(ScalarSpec(128, 2, 2, 64, 128)).ok());
  other = params;
  other.v_group_channels = 16;
  EXPECT_EQ(LaunchQuantizeBlock(other, stream()).code(), absl::StatusCode::kUnimplemented);
  other = params;
  other.items = nullptr;
  EXPECT_EQ(LaunchQuantizeBlock(other, stream()).code(), absl::StatusCode::kInvalidArgument);
  other = params;
  other.residues = memory.as<std::uint32_t>();
  EXPECT_EQ(LaunchQuantizeBlock(other, stream()).code(), absl::StatusCode::kInvalidArgument);
  other = params;
  other.kv_heads = 0;
  EXPECT_EQ(LaunchQuantizeBlock(other, stream()).code(), absl::StatusCode::kInvalidArgument);
}

// Needs no GPU.
TEST(FaultTest, KeysAreOrderedAndComeBack) {
  const Fault fault = {
      .item = 70000, .head = 9, .is_v = true, .is_scale = true, .token = 63, .channel = 255};
  const Fault back = FaultOf(FaultKey(fault));
  EXPECT_EQ(back.item, 70000u);
  EXPECT_EQ(back.head, 9);
  EXPECT_TRUE(back.is_v);
  EXPECT_TRUE(back.is_scale);
  EXPECT_EQ(back.token, 63);
  EXPECT_EQ(back.channel, 255);
  EXPECT_LT(FaultKey({.is_scale = false, .token = 63}), FaultKey({.is_scale = true}));
  EXPECT_LT(FaultKey({.is_scale = true, .token = 63}), FaultKey({.is_v = true}));
  EXPECT_LT(FaultKey(fault), kNoFault);
  EXPECT_FALSE(FaultStatus(FaultKey(fault), {}).ok());
}

}  // namespace
}  // namespace kvferry::kernels
