#include "kernels/decode_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/attention_variants.h"
#include "kvcodec/plan.h"
#include "tests/kernels/gpu_blocks.h"
#include "tests/kvcodec/codebook_samples.h"

namespace kvferry::kernels {
namespace {

using codec::BlockSpec;
using codec::KvView;
using codec::PlainHead;
using codec::Raw16;
using codec::ScalarSpec;
using codec::WindowSpec;

// Codes, mins and powers of two are exact; what is rounded are q * scale (to 11 bits, once per
// channel and block: scores are off by about 1e-3 with keys as here), p, and p * scale. So the
// result is off by 2e-3 of its norm at most, and a result of one head, whose queries may be
// unlucky, by 5e-3. bf16 adds its own 2^-9. Tensor cores cut off what lies 2^-24 below their
// largest product, and a subnormal stands lower than its exponent says: sums of codes lose 2^-16 of
// their size, which counts where values of both signs cancel over a long context.
constexpr double kErrorFp16 = 2e-3, kErrorBf16 = 5e-3, kErrorOfHead = 5e-3, kErrorLogSum = 5e-3;
constexpr double kCutOff = 1.0 / 65536, kRangeOfNormal = 5;

struct Batch {
  BlockSpec spec;
  Raw16 type = Raw16::kFp16;
  int q_heads = 4, kv_heads = 1, query_tokens = 1;
  WindowSpec window = {.sinks = 4, .recent = 64};
  std::vector<int> tokens;
  float k_times = 1, v_times = 1, q_times = 1;
  float k_shift = 0;  // of every 16th channel, more in later tokens
  int peak = -1;      // a token that every row of q scores higher by about `peak_height`
  float peak_height = 0;
};

struct Result {
  std::vector<std::uint16_t> out;
  std::vector<float> log_sum;
};

std::uint16_t Times(std::uint16_t value, Raw16 type, float factor) {
  return codec::ToRaw16(type, codec::FloatFromRaw16(type, value) * factor);
}

class DecodeAttentionTest : public GpuBlocksTest {
 protected:
  // Quantizes random K and V on the CPU, attends on the GPU, and compares with fp64 attention over
  // what the codes stand for.
  void ExpectIsAttention(const Batch& batch) {
    SCOPED_TRACE(codec::SpecName(batch.spec) + ", " + std::to_string(batch.tokens.size()) +
                 " sequences, the first of " + std::to_string(batch.tokens[0]) + " tokens, " +
                 std::to_string(batch.q_heads) + "/" + std::to_string(batch.kv_heads) + " heads, " +
                 (batch.type == Raw16::kBf16 ? "bf16" : "fp16"));
    Build(batch);
    if (HasFatalFailure()) return;
    const Result first = Attend(batch);
    if (HasFatalFailure()) return;
    const Result second = Attend(batch, /*early=*/true);
    EXPECT_EQ(first.out, second.out) << "the same plan gave other bits";
    EXPECT_EQ(first.log_sum, second.log_sum);
    Compare(batch, first);
  }

  void Build(const Batch& batch) {
    const int d = batch.spec.head_dim, heads = batch.kv_heads;
    const int capacity = WindowCapacity(batch.window);
    const std::size_t page_bytes = PageBytes(batch.spec, heads);
    const std::size_t sink_values = std::size_t{2} * heads * batch.window.sinks * d;
    const std::size_t window_values = std::size_t{2} * heads * capacity * d;
    std::vector<std::uint16_t> sinks(sink_values * batch.tokens.size(), kNan);
    std::vector<std::uint16_t> windows(window_values * batch.tokens.size(), kNan);
    std::vector<std::byte> pool;
    heads_.clear();
    lengths_.clear();
    sequences_.clear();
    int rows = 0;
    for (const int tokens : batch.tokens) rows += PlanBlocks(tokens, batch.window).blocks;
    // A page of NaN patterns behind those of every sequence.
    const int table_rows = rows + static_cast<int>(batch.tokens.size());
    pool.resize(page_bytes * table_rows, std::byte{0xff});
    std::vector<int> place(table_rows);
    std::iota(place.begin(), place.end(), 0);
    std::shuffle(place.begin(), place.end(), random_);
    std::vector<std::byte> page(page_bytes + 128);
    std::byte* aligned = page.data() + (128 - reinterpret_cast<std::uintptr_t>(page.data()) % 128);
    std::vector<float> k(std::size_t{64} * heads * d), v(k.size());
    int row = 0;
    for (std::size_t s = 0; s < batch.tokens.size(); ++s) {
      const codec::BlockPlan plan = PlanBlocks(batch.tokens[s], batch.window);
      codec::KvSample kv = codec::MakeKv(heads, plan.tokens, d, batch.type, ++seed_);
      for (std::uint16_t& x : kv.k) x = Times(x, batch.type, batch.k_times);
      for (std::size_t i = 5; i < kv.k.size() && batch.k_shift != 0; i += 16) {
        const auto token = static_cast<float>(i / d % plan.tokens);
        const float shift = batch.k_shift * (1 + token / static_cast<float>(plan.tokens));
        kv.k[i] = codec::ToRaw16(batch.type, codec::FloatFromRaw16(batch.type, kv.k[i]) + shift);
      }
      for (int h = 0; h < heads && batch.peak >= 0; ++h) {
        kv.k[(std::size_t(h) * plan.tokens + batch.peak) * d] =
            codec::ToRaw16(batch.type, batch.peak_height / ScaleOf(batch));
      }
      for (std::uint16_t& x : kv.v) x = Times(x, batch.type, batch.v_times);
      std::vector<PlainHead> plain(heads);
      for (int h = 0; h < heads; ++h) AppendRaw(kv.view.Tokens(0, plan.sinks), h, plain[h]);
      lengths_.push_back({.blocks = plan.blocks,
                          .raw_tokens = plan.sinks + plan.window_tokens(),
                          .page_begin = row});
      for (int b = 0; b < plan.blocks; ++b, ++row) {
        const KvView block = kv.view.Tokens(plan.block_begin(b), 64);
        const codec::BlockOrigin origin = {.token_begin = plan.block_begin(b)};
        ASSERT_TRUE(cpu_->Quantize(block, batch.spec, origin, {aligned, page_bytes}).ok());
        ASSERT_TRUE(cpu_->Dequantize({aligned, page_bytes}, batch.spec, origin, heads, k, v).ok());
        std::copy_n(aligned, page_bytes, pool.begin() + page_bytes * place[row]);
        for (int h = 0; h < heads; ++h) {
          const std::ptrdiff_t at = std::ptrdiff_t{64} * d * h;
          plain[h].k.insert(plain[h].k.end(), k.begin() + at, k.begin() + at + 64 * d);
          plain[h].v.insert(plain[h].v.end(), v.begin() + at, v.begin() + at + 64 * d);
        }
      }
      ++row;
      const int begin = static_cast<int>(random_() % capacity);
      for (int h = 0; h < heads; ++h) {
        AppendRaw(kv.view.Tokens(plan.window_begin, plan.window_tokens()), h, plain[h]);
        const auto copy = [&](int token, std::uint16_t* memory, int of, int at) {
          for (int side = 0; side < 2; ++side) {
            const auto& from = side == 0 ? kv.k : kv.v;
            std::copy_n(from.data() + (std::size_t(h) * plan.tokens + token) * d, d,
                        memory + (std::size_t(side * heads + h) * of + at) * d);
          }
        };
        for (int t = 0; t < plan.sinks; ++t) {
          copy(t, sinks.data() + sink_values * s, batch.window.sinks, t);
        }
        for (int t = 0; t < plan.window_tokens(); ++t) {
          copy(plan.window_begin + t, windows.data() + window_values * s, capacity,
               (begin + t) % capacity);
        }
      }
      heads_.push_back(std::move(plain));
      sequences_.push_back({.sink_tokens = plan.sinks,
                            .window_begin = begin,
                            .window_tokens = plan.window_tokens(),
                            .first_page = lengths_.back().page_begin});
    }
    pool_.emplace(Upload(pool));
    sinks.resize(sinks.size() + 8);
    sinks_.emplace(Upload(sinks));
    windows_.emplace(Upload(windows));
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      sequences_[s].sinks = sinks_->as<std::uint16_t>() + sink_values * s;
      sequences_[s].window = windows_->as<std::uint16_t>() + window_values * s;
    }
    table_.clear();
    for (const int at : place) table_.push_back(pool_->data() + page_bytes * at);
    q_.clear();
    std::normal_distribution<float> normal;
    const std::size_t values = batch.tokens.size() * batch.query_tokens * batch.q_heads * d;
    for (std::size_t i = 0; i < values; ++i) {
      const float q = normal(random_) * batch.q_times;
      q_.push_back(codec::ToRaw16(batch.type, batch.peak >= 0 && i % d == 0 ? 1.0f : q));
    }
  }

  AttentionConfig ConfigOf(const Batch& batch) const {
    return {.spec = batch.spec,
            .q_heads = batch.q_heads,
            .kv_heads = batch.kv_heads,
            .query_tokens = batch.query_tokens,
            .type = batch.type,
            .scale = ScaleOf(batch),
            .sink_capacity = batch.window.sinks,
            .window_capacity = WindowCapacity(batch.window),
            .max_sequences = static_cast<int>(batch.tokens.size()) + 1};
  }
  static float ScaleOf(const Batch& batch) {
    return 1.0f / std::sqrt(static_cast<float>(batch.spec.head_dim));
  }

  // early: each launch may begin before the one ahead of it has ended.
  Result Attend(const Batch& batch, bool early = false) {
    auto attention = DecodeAttention::Create(ConfigOf(batch));
    if (!attention.ok()) {
      ADD_FAILURE() << attention.status();
      return {};
    }
    const std::size_t rows = batch.tokens.size() * batch.query_tokens * batch.q_heads;
    const DeviceBuffer q = Upload(q_), sequences = Upload(sequences_), table = Upload(table_);
    const DeviceBuffer out = Filled(rows * batch.spec.head_dim * 2), log_sum = Filled(rows * 4);
    AttentionLayer layer;
    layer.sequences = sequences.as<AttentionSequence>();
    layer.pages = table.as<const std::byte*>();
    layer.layer = batch.spec.layer;
    layer.q = q.as<std::uint16_t>();
    layer.out = out.as<std::uint16_t>();
    layer.log_sum = log_sum.as<float>();
    layer.pages_settled = early;
    absl::Status status = (*attention)->Plan(lengths_, stream());
    EXPECT_TRUE(status.ok()) << status;
    // Twice and more: each launch finds the counters and partial results as the one ahead of it
    // leaves them.
    for (int i = 0; i < 3; ++i) {
      status = (*attention)->Launch(layer, stream());
      EXPECT_TRUE(status.ok()) << status;
    }
    status = stream().Synchronize();
    EXPECT_TRUE(status.ok()) << status;
    return {Download<std::uint16_t>(out, rows * batch.spec.head_dim),
            Download<float>(log_sum, rows)};
  }

  void Compare(const Batch& batch, const Result& result) {
    const int d = batch.spec.head_dim, group = batch.q_heads / batch.kv_heads;
    const double most = batch.type == Raw16::kFp16 ? kErrorFp16 : kErrorBf16;
    double worst = 0, all_errors = 0, all_norms = 0;
    std::size_t row = 0;
    for (std::size_t s = 0; s < batch.tokens.size(); ++s) {
      for (int t = 0; t < batch.query_tokens; ++t) {
        for (int h = 0; h < batch.q_heads; ++h, ++row) {
          std::vector<float> q(d);
          for (int c = 0; c < d; ++c) q[c] = codec::FloatFromRaw16(batch.type, q_[row * d + c]);
          PlainHead head = heads_[s][h / group];
          const std::size_t seen = batch.tokens[s] - (batch.query_tokens - 1 - t);
          head.k.resize(seen * d);
          head.v.resize(seen * d);
          const std::vector<double> exact =
              codec::ExactAttention(q.data(), head, d, ScaleOf(batch));
          double error = 0, norm = 0;
          for (int c = 0; c < d; ++c) {
            const double got = codec::FloatFromRaw16(batch.type, result.out[row * d + c]);
            error += (got - exact[c]) * (got - exact[c]);
            norm += exact[c] * exact[c];
          }
          const double relative = std::sqrt(error / norm);
          all_errors += error;
          all_norms += norm;
          const double cut_off = kCutOff * kRangeOfNormal * batch.v_times * std::sqrt(d / norm);
          EXPECT_LE(relative, kErrorOfHead + cut_off)
              << "sequence " << s << " token " << t << " head " << h;
          worst = std::max(worst, std::isnan(relative) ? 1e9 : relative);
          EXPECT_NEAR(result.log_sum[row], LogSum(q, head, d, ScaleOf(batch)),
                      kErrorLogSum * std::max(1.0f, batch.q_times * batch.k_times));
        }
      }
    }
    const double cut_off = kCutOff * kRangeOfNormal * batch.v_times *
                           std::sqrt(static_cast<double>(row) * d / all_norms);
    EXPECT_LE(std::sqrt(all_errors / all_norms), most + cut_off)
        << "over all; the worst head " << worst;
  }

  static double LogSum(const std::vector<float>& q, const PlainHead& head, int d, double scale) {
    double top = -INFINITY, sum = 0;
    std::vector<double> scores;
    for (std::size_t t = 0; t < head.k.size() / d; ++t) {
      double score = 0;
      for (int c = 0; c < d; ++c) score += double{q[c]} * head.k[t * d + c];
      scores.push_back(score * scale);
      top = std::max(top, scores.back());
    }
    for (const double score : scores) sum += std::exp(score - top);
    return top + std::log(sum);
  }

  static constexpr std::uint16_t kNan = 0x7fff;  // in fp16 and bf16
  const std::unique_ptr<codec::Backend> cpu_ = codec::MakeBackend(false);
  std::mt19937 random_{7};
  std::uint32_t seed_ = 0;
  std::vector<std::vector<PlainHead>> heads_;  // by sequence and KV head: what the codes stand for
  std::vector<AttentionLength> lengths_;
  std::vector<AttentionSequence> sequences_;
  std::vector<const std::byte*> table_;
  std::vector<std::uint16_t> q_;
  std::optional<DeviceBuffer> pool_, sinks_, windows_;
};

TEST_F(DecodeAttentionTest, EveryVariantAttendsOnWhatItsCodesStandFor) {
  for (const AttentionVariant& variant : AllAttentionVariants()) {
    for (const auto& [type, q_heads] :  // some variants have kernels of their own for few rows
         {std::pair{Raw16::kFp16, 6}, {Raw16::kBf16, 6}, {Raw16::kBf16, 10}}) {
      Batch batch = {.spec = variant.spec,
                     .type = type,
                     .q_heads = q_heads,
                     .kv_heads = 2,
                     .tokens = {700, 1, 63, 64, 65, 4 + 64 + 63, 4 + 64 + 64}};
      batch.spec.raw_type = type;
      std::shared_ptr<const codec::Codebooks> books;
      if (batch.spec.kind == codec::BlockKind::kCoupled) {
        books = codec::MakeCodebooks({3, 2, batch.spec.head_dim, batch.spec.coupling}, 11);
        batch.spec = codec::CoupledSpec(*books, 2);
      }
      ExpectIsAttention(batch);
      if (HasFailure()) return;
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
// are as many as matter together.
TEST_F(DecodeAttentionTest, ManyTokensFarBelowOnePeak) {
  for (const int bits : {2, 4}) {
    for (const float height : {9.0f, 11.0f, 13.0f}) {
      ExpectIsAttention({.spec = ScalarSpec(128, bits, bits, 64, 128),
                         .q_heads = 8,
                         .kv_heads = 8,
                         .tokens = std::vector<int>(17, 4096),
                         .q_times = 0.3f,
                         .peak = 100,
                         .peak_height = height});
    }
  }
}

// Pages again and again, with all scores equal: the result is the mean of their values. More tokens
// for one warp than its integers have room for.
TEST_F(DecodeAttentionTest, AWarpThatSumsMillionsOfTokens) {
  Batch batch = {.spec = ScalarSpec(128, 2, 2, 64, 128),
                 .q_heads = 8,
                 .kv_heads = 8,
                 .tokens = std::vector<int>(17, 4 + 4 * 64 + 64),
                 .q_times = 0};
  Build(batch);
  constexpr int kTimes = 36000;
  const std::vector<const std::byte*> once = table_;
  table_.clear();
  for (std::size_t s = 0; s < lengths_.size(); ++s) {
    const auto begin = once.begin() + lengths_[s].page_begin;
    ASSERT_EQ(lengths_[s].blocks, 4);
    sequences_[s].first_page = lengths_[s].page_begin = static_cast<int>(table_.size());
    lengths_[s].blocks *= kTimes;
    for (int i = 0; i < kTimes; ++i) table_.insert(table_.end(), begin, begin + 4);
  }
  const Result result = Attend(batch);
  double error = 0, norm = 0;
  for (std::size_t row = 0; row < 17 * 8; ++row) {
    const std::vector<float>& v = heads_[row / 8][row % 8].v;
    for (int c = 0; c < 128; ++c) {
      double mean = 0;
      for (int token = 4; token < 4 + 4 * 64; ++token) mean += v[token * 128 + c] / (4 * 64.0);
      const double got = codec::FloatFromRaw16(batch.type, result.out[row * 128 + c]);
      error += (got - mean) * (got - mean);
      norm += mean * mean;
    }
    EXPECT_NEAR(result.log_sum[row], std::log(4 * 64.0 * kTimes), kErrorLogSum);
  }
  EXPECT_LE(std::sqrt(error / norm), kErrorOfHead + kCutOff * kRangeOfNormal * 16);
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
  EXPECT_EQ(kind(64, 64), short_ones);
}

}  // namespace
}  // namespace kvferry::kernels
