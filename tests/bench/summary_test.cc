#include "bench/quality/summary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace kvferry::bench {
namespace {

constexpr codec::CacheGeometry kGeometry = {.layers = 2, .kv_heads = 1, .head_dim = 64};

Record MakeRecord(std::vector<double> nll, std::vector<double> kl) {
  return {.nll = std::move(nll),
          .kl = std::move(kl),
          .agree = 1,
          .sure = 1,
          .sure_agree = 1,
          .top5 = 8,
          .greedy_tokens = 9,
          .greedy_prefix = 4,
          .trajectory_kl = {0.25, 0.75},
          .attention_error = {0.1, 0.3},
          .wire_bytes = 1280,
          .resident_bytes = 4096,
          .resident_tokens = 16,
          .seconds = 2};
}

TEST(SummaryTest, ValuesByHand) {
  const std::vector<Record> exact = {MakeRecord({1, 1}, {0, 0}), MakeRecord({2, 4}, {0, 0})};
  const std::vector<Record> lossy = {MakeRecord({1, 1.5}, {0.5, 0.25}),
                                     MakeRecord({2.5, 5}, {0, 1.25})};
  const auto summary = Summarize({.codec = codec::FindCodec("int8").value(),
                                  .records = lossy,
                                  .exact_records = exact,
                                  .geometry = kGeometry,
                                  .prompt_tokens = 10,
                                  .seed = 1});
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->passages, 2u);
  EXPECT_EQ(summary->positions, 4u);
  EXPECT_DOUBLE_EQ(summary->perplexity.value, std::exp(2.5));
  EXPECT_DOUBLE_EQ(summary->ratio.value, std::exp(0.5));
  EXPECT_DOUBLE_EQ(summary->ratio.low, std::exp(0.25));  // twice the first passage
  EXPECT_DOUBLE_EQ(summary->ratio.high, std::exp(0.75));
  EXPECT_DOUBLE_EQ(summary->kl.value, 0.5);
  EXPECT_EQ(summary->kl_p99, 1.25);
  EXPECT_EQ(summary->kl_max, 1.25);
  EXPECT_EQ(summary->agreement, 0.5);
  EXPECT_EQ(summary->sure_agreement, 1);
  EXPECT_EQ(summary->top5, 0.8);
  EXPECT_EQ(summary->greedy_prefix, 4);
  EXPECT_EQ(summary->trajectory_kl.value, 0.5);
  EXPECT_DOUBLE_EQ(summary->mean_attention_error(), 0.2);
  EXPECT_EQ(summary->wire_bytes_per_token, 128);
  EXPECT_EQ(summary->resident_bytes_per_token, 256);
  EXPECT_EQ(summary->wire_bits, 4);  // 128 bytes for 2 * 2 * 64 values
  EXPECT_EQ(summary->resident_bits, 8);
  EXPECT_EQ(summary->block_bits, 8.25);
  EXPECT_EQ(summary->seconds, 4);
}

TEST(SummaryTest, ALossyCodecWithoutAnyDivergenceIsABypass) {
  const std::vector<Record> records = {MakeRecord({1, 1}, {0, 0})};
  const auto summarize = [&](const char* name) {
    return Summarize({.codec = codec::FindCodec(name).value(),
                      .records = records,
                      .exact_records = records,
                      .geometry = kGeometry,
                      .prompt_tokens = 10})
        .status();
  };
  EXPECT_EQ(summarize("kivi-4").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(summarize("fp16").ok());
}

}  // namespace
}  // namespace kvferry::bench
