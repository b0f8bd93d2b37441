#include "kernels/decode_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/attention_variants.h"
#include "tests/kernels/attention_fixture.h"
#include "tests/kvcodec/codebook_samples.h"

namespace kvferry::kernels {
namespace {

TEST_F(DecodeAttentionTest, EveryVariantAttendsOnWhatItsCodesStandFor) {
  for (const AttentionVariant& variant : AllAttentionVariants()) {
    for (const auto& [type, q_heads] :  // some variants have kernels of their own for few rows
         {std::pair{Raw16::kFp16, 6}, {Raw16::kBf16, 6}, {Raw16::kBf16, 10}}) {
      Batch batch = {.spec = variant.spec,
                     .type = type,
                     .q_heads = q_heads,
                     .kv_heads = 2,
                     .tokens = {700, 1, 63, 64, 65, 4 + 64 + 63, 4 + 64 + 64, 2, 200, 5}};
      batch.spec.raw_type = type;
      std::shared_ptr<const codec::Codebooks> books;
      if (batch.spec.kind == codec::BlockKind::kCoupled) {
        books = codec::MakeCodebooks({3, 2, batch.spec.head_dim, batch.spec.coupling}, 11);
        batch.spec = codec::CoupledSpec(*books, 2);
      }
      ExpectIsAttention(batch);              // of more heads than there are clusters
      batch.tokens = {500, 1, 4 + 64 + 64};  // of fewer
      ExpectIsAttention(batch);
      if (HasFailure()) return;
    }
  }
}

// A cluster for each head, where the device has them, up to eight blocks of each of its thread
// blocks. Short sequences leave some of these without work.
TEST_F(DecodeAttentionTest, OneSequenceOfAnyLength) {
  for (const int bits : {2, 4}) {
    for (const int tokens :
         {1, 2, 16, 17, 63, 64, 65, 4 + 64 + 63, 4 + 64 + 64, 400, 4096, 4 + 64 + 64 * 64,
          4 + 64 + 65 * 64, 8192, 4 + 64 + 128 * 64, 4 + 64 + 129 * 64}) {
      ExpectIsAttention({.spec = ScalarSpec(128, bits, bits, 64, 128),
                         .q_heads = 8,
                         .kv_heads = 2,
                         .tokens = {tokens}});
    }
  }
}

TEST_F(DecodeAttentionTest, OneSequenceForManyQueryRows) {
  for (const BlockSpec& spec : {ScalarSpec(64, 4, 4, 64, 64), ScalarSpec(96, 4, 4, 64, 32),
                                ScalarSpec(128, 4, 4, 64, 128), ScalarSpec(256, 4, 4, 64, 128)}) {
    // Eight groups of rows, and one with a second group of a single row.
    for (const auto& [q_heads, query_tokens] : {std::pair{16, 4}, {3, 3}}) {
      for (const int tokens : {4, 70, 1500}) {
        ExpectIsAttention({.spec = spec,
                           .type = Raw16::kBf16,
                           .q_heads = q_heads,
                           .query_tokens = query_tokens,
                           .tokens = {tokens}});
      }
    }
  }
}

TEST_F(DecodeAttentionTest, LengthsAroundEveryBoundary) {
  for (const int bits : {2, 4}) {
    ExpectIsAttention(
        {.spec = ScalarSpec(128, bits, bits, 64, 128),
         .tokens = {1, 2, 3, 4, 5, 63, 64, 65, 67, 68, 127, 128, 131, 132, 191, 192, 4095, 4096}});
  }
}

TEST_F(DecodeAttentionTest, KindsWithoutGroups) {
  for (BlockSpec spec :
       {BlockSpec{.kind = codec::BlockKind::kRaw16}, BlockSpec{.kind = codec::BlockKind::kInt8},
        BlockSpec{.kind = codec::BlockKind::kFp8},
        BlockSpec{.kind = codec::BlockKind::kLut, .table = codec::LutTable::kNf4},
        BlockSpec{.kind = codec::BlockKind::kLut, .table = codec::LutTable::kNf3},
        BlockSpec{.kind = codec::BlockKind::kLut, .table = codec::LutTable::kLm3},
        BlockSpec{.kind = codec::BlockKind::kLut, .table = codec::LutTable::kLm2},
        BlockSpec{.kind = codec::BlockKind::kLut, .table = codec::LutTable::kAnf4}}) {
    spec.head_dim = 128;
    for (const float v_times : {1.0f, 1e-2f, 300.0f}) {
      ExpectIsAttention({.spec = spec,
                         .q_heads = 8,
                         .kv_heads = 2,
                         .tokens = {1, 5000, 300, 64},
                         .v_times = v_times});
    }
  }
}

TEST_F(DecodeAttentionTest, ShiftedKeys) {
  for (const int head_dim : {64, 128}) {
    const BlockSpec spec = {
        .kind = codec::BlockKind::kLut, .head_dim = head_dim, .table = codec::LutTable::kAnf4};
    for (const int group : {1, 3, 8, 16}) {
      ExpectIsAttention(
          {.spec = spec, .q_heads = 2 * group, .kv_heads = 2, .tokens = {9000, 200}, .k_shift = 8});
    }
    ExpectIsAttention({.spec = spec,
                       .type = Raw16::kBf16,
                       .q_heads = 6,
                       .kv_heads = 2,
                       .query_tokens = 3,
                       .tokens = {700, 132},
                       .k_shift = -5});
  }
}

TEST_F(DecodeAttentionTest, CoupledBlocksFarFromTheBegin) {
  for (const codec::Coupling& coupling : {codec::Coupling{4, 8}, {8, 10}, {2, 4}}) {
    const auto books = codec::MakeCodebooks({1, 2, 128, coupling}, 4);
    const BlockSpec spec = codec::CoupledSpec(*books, 0);
    ExpectIsAttention({.spec = spec, .q_heads = 8, .kv_heads = 2, .tokens = {40000, 300}});
    ExpectIsAttention({.spec = spec,
                       .type = Raw16::kBf16,
                       .q_heads = 6,
                       .kv_heads = 2,
                       .query_tokens = 3,
                       .window = {.sinks = 0, .recent = 32},
                       .tokens = {700, 132, 9000}});
  }
}

TEST_F(DecodeAttentionTest, GroupsOfQueryHeads) {
  for (const int group : {1, 2, 3, 4, 5, 8, 9, 16}) {
    ExpectIsAttention({.spec = ScalarSpec(128, 2, 2, 64, 128),
                       .q_heads = 2 * group,
                       .kv_heads = 2,
                       .tokens = {9000, 200}});
  }
}

TEST_F(DecodeAttentionTest, SeveralQueryTokensSeeNoLaterOnes) {
  for (const int query_tokens : {2, 3, 4}) {
    ExpectIsAttention({.spec = ScalarSpec(64, 4, 4, 64, 64),
                       .type = Raw16::kBf16,
                       .q_heads = 9,
                       .kv_heads = 3,
                       .query_tokens = query_tokens,
                       .tokens = {4, 500, 70}});
  }
}

TEST_F(DecodeAttentionTest, WindowsWithoutSinksAndSinksWithoutMuchWindow) {
  const BlockSpec spec = ScalarSpec(128, 4, 2, 64, 128);
  ExpectIsAttention({.spec = spec, .window = {.sinks = 0, .recent = 128}, .tokens = {900, 7}});
  ExpectIsAttention({.spec = spec, .window = {.sinks = 16, .recent = 0}, .tokens = {81, 900, 17}});
  ExpectIsAttention({.spec = spec, .window = {.sinks = 0, .recent = 0}, .tokens = {65, 640 + 1}});
}

TEST_F(DecodeAttentionTest, SharpAndFlatSoftmax) {
  const BlockSpec spec = ScalarSpec(128, 2, 2, 64, 128);
  ExpectIsAttention({.spec = spec, .tokens = {2000}, .q_times = 1e-3f});
  ExpectIsAttention({.spec = spec, .tokens = {2000}, .q_times = 1e-6f});
  ExpectIsAttention({.spec = spec, .tokens = {2000}, .q_times = 0});
}

// Where values meet p as integers, p of all but the peak is less than a step of these, and there
// are as many as matter together. What is left is noise of the blocks that follow the peak.
TEST_F(DecodeAttentionTest, ManyTokensFarBelowOnePeak) {
  for (const int bits : {2, 4}) {
    ExpectIsAttentionOnRepeated({.spec = ScalarSpec(128, bits, bits, 64, 128),
                                 .q_heads = 8,
                                 .kv_heads = 8,
                                 .tokens = std::vector<int>(16, 4 + 64 * 16 + 64),
                                 .q_times = 0.3f,
                                 .peak = 30,
                                 .peak_height = 12},
                                /*from=*/1, /*times=*/136, /*most=*/3 * kErrorOfHead);
  }
}

// More tokens for one warp than its integers have room for.
TEST_F(DecodeAttentionTest, AWarpThatSumsManyBlocks) {
  ExpectIsAttentionOnRepeated({.spec = ScalarSpec(128, 2, 2, 64, 128),
                               .q_heads = 8,
                               .kv_heads = 8,
                               .tokens = std::vector<int>(16, 4 + 64 + 64),
                               .q_times = 0},
                              /*from=*/0, /*times=*/120000, /*most=*/2 * kErrorOfHead);
}

// What a step leaves where its pieces met is nothing to a later one of other pieces.
TEST_F(DecodeAttentionTest, StepsOfOtherLengths) {
  const Batch batch = {.spec = ScalarSpec(128, 4, 4, 64, 128),
                       .q_heads = 8,
                       .kv_heads = 2,
                       .tokens = {40000, 30000}};
  Build(batch);
  auto attention = DecodeAttention::Create(ConfigOf(batch));
  ASSERT_TRUE(attention.ok()) << attention.status();
  const DeviceBuffer q = Upload(q_), sequences = Upload(sequences_), table = Upload(table_);
  const std::size_t values = std::size_t{2} * batch.q_heads * batch.spec.head_dim;
  const auto attend = [&](std::size_t count, int times) {
    const DeviceBuffer out = Filled(values * 2);
    AttentionLayer layer;
    layer.sequences = sequences.as<AttentionSequence>();
    layer.pages = table.as<const std::byte*>();
    layer.q = q.as<std::uint16_t>();
    layer.out = out.as<std::uint16_t>();
    EXPECT_TRUE((*attention)->Plan(std::span(lengths_).first(count), stream()).ok());
    for (int i = 0; i < times; ++i) EXPECT_TRUE((*attention)->Launch(layer, stream()).ok());
    EXPECT_TRUE(stream().Synchronize().ok());
    return Download<std::uint16_t>(out, values / 2 * count);
  };
  const auto one = attend(1, 1), both = attend(2, 3);
  EXPECT_EQ(attend(1, 2), one);
  EXPECT_EQ(attend(2, 1), both);
  EXPECT_NE(one, std::vector<std::uint16_t>(both.begin(), both.begin() + std::ssize(one)))
      << "the pieces were the same ones";
}

// Partial results that are no numbers are results all the same: nobody waits for others.
TEST_F(DecodeAttentionTest, ARowThatIsNoNumber) {
  for (const int q_heads : {3, 7}) {
    const Batch batch = {.spec = ScalarSpec(128, 2, 2, 64, 128),
                         .type = Raw16::kBf16,
                         .q_heads = q_heads,
                         .tokens = {20000}};
    Build(batch);
    const Result good = Attend(batch);
    const int d = batch.spec.head_dim;
    std::fill_n(q_.begin() + d, d, 0xffff);
    const Result bad = Attend(batch);
    for (int i = 0; i < q_heads * d; ++i) {
      const float x = codec::FloatFromRaw16(batch.type, bad.out[i]);
      if (i / d == 1) {
        EXPECT_TRUE(std::isnan(x)) << i;
      } else {
        EXPECT_NEAR(x, codec::FloatFromRaw16(batch.type, good.out[i]), 1e-2) << i;
      }
    }
  }
}

TEST_F(DecodeAttentionTest, LargeAndSmallValues) {
  const BlockSpec spec = ScalarSpec(128, 2, 2, 64, 128);
  for (const float v_times : {1e-3f, 30.0f, 2000.0f, 9000.0f}) {
    for (const int q_heads : {4, 5}) {
      ExpectIsAttention({.spec = spec, .q_heads = q_heads, .tokens = {1500}, .v_times = v_times});
    }
  }
  // The same scores from large keys and small queries, and the other way round.
  ExpectIsAttention({.spec = spec, .tokens = {1500}, .k_times = 1000, .q_times = 1e-3f});
  ExpectIsAttention(
      {.spec = spec, .type = Raw16::kBf16, .tokens = {1500}, .k_times = 1e-3f, .q_times = 1000});
}

TEST_F(DecodeAttentionTest, ALongContextAndARaggedBatch) {
  ExpectIsAttention({.spec = ScalarSpec(128, 2, 2, 64, 128), .tokens = {131072}});
  std::vector<int> ragged(256, 1024);
  ragged[77] = 131072;
  ExpectIsAttention(
      {.spec = ScalarSpec(128, 4, 4, 64, 128), .q_heads = 1, .kv_heads = 1, .tokens = ragged});
}

TEST_F(DecodeAttentionTest, WhatIsNotCompiledOrWrongIsRefused) {
  const Batch batch = {.spec = ScalarSpec(256, 8, 8, 32, 64), .tokens = {1}};
  const absl::Status missing = DecodeAttention::Create(ConfigOf(batch)).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(missing.message()),
              testing::AllOf(testing::HasSubstr("head_dim 128: 16 bit int8 fp8 K2V2-GK64-GV128"),
                             testing::HasSubstr("head_dim 128: nf4 anf4 nf3 lm3 lm2")));
  const absl::Status lm3 =
      DecodeAttention::Create(ConfigOf({.spec = {.kind = codec::BlockKind::kLut,
                                                 .head_dim = 96,
                                                 .table = codec::LutTable::kLm3},
                                        .tokens = {1}}))
          .status();
  EXPECT_EQ(lm3.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(lm3.message()), testing::HasSubstr("head_dim 96 is not compiled"));
  AttentionConfig config = ConfigOf({.spec = ScalarSpec(128, 2, 2, 64, 128), .tokens = {1}});
  config.q_heads = 17;
  EXPECT_EQ(DecodeAttention::Create(config).status().code(), absl::StatusCode::kInvalidArgument);
  config.q_heads = 4;
  auto attention = DecodeAttention::Create(config);
  ASSERT_TRUE(attention.ok()) << attention.status();
  const std::vector<AttentionLength> too_many(3, {.raw_tokens = 1}), none = {{.blocks = 1}};
  EXPECT_EQ((*attention)->Plan(too_many, stream()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*attention)->Plan(none, stream()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*attention)->Launch({}, stream()).code(), absl::StatusCode::kFailedPrecondition);
  const std::vector<AttentionLength> one = {{.raw_tokens = 1}};
  ASSERT_TRUE((*attention)->Plan(one, stream()).ok());
  EXPECT_EQ((*attention)->Launch({}, stream()).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DecodeAttentionTest, TheKernelIsChosenByThePlan) {
  AttentionConfig config = ConfigOf({.spec = ScalarSpec(128, 2, 2, 64, 128), .tokens = {1}});
  config.q_heads = 32;
  config.kv_heads = 8;
  config.max_sequences = 64;
  const auto attention = DecodeAttention::Create(config);
  ASSERT_TRUE(attention.ok()) << attention.status();
  const auto kind = [&](int sequences, int blocks) {
    const std::vector<AttentionLength> lengths(sequences, {.blocks = blocks, .raw_tokens = 1});
    EXPECT_TRUE((*attention)->Plan(lengths, stream()).ok());
    return (*attention)->launch_kind();
  };
  const int short_ones = kind(64, 64);
  EXPECT_NE(kind(64, 4096), short_ones);
  EXPECT_NE(kind(1, 64), short_ones);  // spread over the device
  if (device().compute_capability >= 90) {
    EXPECT_NE(kind(1, 64), kind(1, 4096));  // in clusters, for as long as these suffice
    EXPECT_EQ(kind(1, 64), kind(1, 0));
  }
  // Pieces of 20 rounds and more leave tails, which a graph of the shorter ones has no blocks for.
  EXPECT_NE(kind(8, 768), kind(8, 448));
  EXPECT_EQ(kind(64, 64), short_ones);
}

}  // namespace
}  // namespace kvferry::kernels
