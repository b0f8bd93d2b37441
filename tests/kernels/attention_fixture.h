#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/decode_attention.h"
#include "kvcodec/plan.h"
#include "tests/kernels/gpu_blocks.h"
#include "tests/kvcodec/codebook_samples.h"

namespace kvferry::kernels {

using codec::BlockSpec;
using codec::KvView;
using codec::PlainHead;
using codec::Raw16;
using codec::ScalarSpec;
using codec::WindowSpec;

// Codes, mins and powers of two are exact; what is rounded are q * scale (to 11 bits, once per
// channel and block: scores are off by about 1e-3 with keys as here), p, and p * scale, where
// values meet it as integers to 2^-14 of the greatest too. So the result is off by 2e-3 of its
// norm at most, and a result of one head, whose queries may be unlucky, by 5e-3. Log sums are off
// as scores are, by 2e-3 over all, and that of one head by 1e-2: tokens that one channel lifts
// share that channel's error. bf16 adds its own 2^-9. Tensor cores cut off what lies 2^-24 below
// their largest product, and a subnormal stands lower than its exponent says: sums of codes lose
// 2^-16 of their size, which counts where values of both signs cancel over a long context.
inline constexpr double kErrorFp16 = 2e-3, kErrorBf16 = 5e-3, kErrorOfHead = 5e-3,
                        kErrorLogSum = 1e-2, kErrorLogSums = 2e-3;
inline constexpr double kCutOff = 1.0 / 65536, kRangeOfNormal = 5;

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

inline std::uint16_t Times(std::uint16_t value, Raw16 type, float factor) {
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

  // The same with all blocks but the first `from` there `times` times: as long a context as one
  // likes, for little work here. As many heads as thread blocks, each of which has a head.
  void ExpectIsAttentionOnRepeated(const Batch& batch, int from, int times, double most) {
    Build(batch);
    if (HasFatalFailure()) return;
    const std::vector<const std::byte*> once = table_;
    table_.clear();
    const int blocks = lengths_[0].blocks;
    for (std::size_t s = 0; s < lengths_.size(); ++s) {
      const auto begin = once.begin() + lengths_[s].page_begin;
      sequences_[s].first_page = lengths_[s].page_begin = static_cast<int>(table_.size());
      lengths_[s].blocks = from + (blocks - from) * times;
      table_.insert(table_.end(), begin, begin + from);
      for (int i = 0; i < times; ++i) table_.insert(table_.end(), begin + from, begin + blocks);
    }
    const Result result = Attend(batch);
    const int d = batch.spec.head_dim, repeated = batch.window.sinks + from * 64;
    const int repeated_end = batch.window.sinks + blocks * 64;
    for (std::size_t row = 0; row < batch.tokens.size() * batch.q_heads; ++row) {
      const PlainHead& head = heads_[row / batch.q_heads][row % batch.q_heads];
      std::vector<double> exact(d);
      double total = 0;
      for (int t = 0; t < batch.tokens[0]; ++t) {
        double score = 0;
        for (int c = 0; c < d; ++c) {
          score += double{codec::FloatFromRaw16(batch.type, q_[row * d + c])} * head.k[t * d + c];
        }
        const double p =
            std::exp(score * ScaleOf(batch)) * (t >= repeated && t < repeated_end ? times : 1);
        for (int c = 0; c < d; ++c) exact[c] += p * head.v[t * d + c];
        total += p;
      }
      double error = 0, norm = 0;
      for (int c = 0; c < d; ++c) {
        const double got = codec::FloatFromRaw16(batch.type, result.out[row * d + c]);
        error += (got - exact[c] / total) * (got - exact[c] / total);
        norm += exact[c] / total * exact[c] / total;
      }
      EXPECT_LE(std::sqrt(error / norm), most + kCutOff * kRangeOfNormal * std::sqrt(d / norm))
          << "row " << row;
    }
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
    // Twice and more: each launch finds the partial results as the one ahead of it leaves them.
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
    const double score_times = std::max(1.0f, batch.q_times * batch.k_times);
    double worst = 0, all_errors = 0, all_norms = 0, log_sum_errors = 0;
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
          const double log_sum_error = result.log_sum[row] - LogSum(q, head, d, ScaleOf(batch));
          EXPECT_LE(std::abs(log_sum_error), kErrorLogSum * score_times)
              << "sequence " << s << " token " << t << " head " << h;
          log_sum_errors += log_sum_error * log_sum_error;
        }
      }
    }
    const double cut_off = kCutOff * kRangeOfNormal * batch.v_times *
                           std::sqrt(static_cast<double>(row) * d / all_norms);
    EXPECT_LE(std::sqrt(all_errors / all_norms), most + cut_off)
        << "over all; the worst head " << worst;
    EXPECT_LE(std::sqrt(log_sum_errors / static_cast<double>(row)), kErrorLogSums * score_times)
        << "log sums over all";
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

}  // namespace kvferry::kernels
