#include "calibrate/layer_errors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/half.h"

namespace kvferry::calibrate {
namespace {

constexpr AttentionShape kShape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};
constexpr int kBlocks = 2, kSinks = 3, kWindow = 5;

// Random keys and values of one sequence, as an exact cache holds them.
class LayerErrorsTest : public ::testing::Test {
 protected:
  LayerErrorsTest() {
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<std::uint16_t>& values, int tokens) {
      values.resize(static_cast<std::size_t>(2) * kShape.kv_heads * tokens * kShape.head_dim);
      for (std::uint16_t& value : values) value = codec::HalfFromFloat(normal(random_));
    };
    fill(sinks_, kSinks);
    fill(window_, kWindow);
    for (int block = 0; block < kBlocks; ++block) {
      std::vector<std::uint16_t> values;
      fill(values, codec::kBlockTokens);
      pages_.push_back(std::make_unique<Page>());
      const absl::Status done =
          backend_->Quantize(View(values, codec::kBlockTokens), raw_, {},
                             {pages_.back()->bytes, codec::PageBytes(raw_, kShape.kv_heads)});
      EXPECT_TRUE(done.ok()) << done;
      pointers_.push_back(pages_.back()->bytes);
    }
    q_.resize(static_cast<std::size_t>(kShape.q_heads) * kShape.head_dim);
    for (float& value : q_) value = normal(random_);
  }

  struct alignas(128) Page {
    std::byte bytes[4 * 2 * 64 * 64];
  };

  static codec::KvView View(const std::vector<std::uint16_t>& values, int tokens) {
    return {.k = values.data(),
            .v = values.data() + values.size() / 2,
            .kv_heads = kShape.kv_heads,
            .tokens = tokens,
            .head_dim = kShape.head_dim,
            .head_stride = static_cast<std::int64_t>(tokens) * kShape.head_dim,
            .token_stride = kShape.head_dim};
  }
  codec::SequenceKv Sequence() const {
    return {.sinks = View(sinks_, kSinks), .pages = pointers_, .window = View(window_, kWindow)};
  }
  std::vector<LayerErrors> ErrorsOf(const std::vector<std::string>& names) {
    std::vector<codec::BlockSpec> specs;
    for (const std::string& name : names) {
      specs.push_back(codec::FindCodec(name)->ForLayer(0, kShape.head_dim).value());
    }
    std::vector<ErrorSums> sums(specs.size());
    const absl::Status done =
        AddErrors(Sequence(), raw_, q_.data(), kShape, specs, *backend_, sums);
    EXPECT_TRUE(done.ok()) << done;
    std::vector<LayerErrors> errors;
    for (const ErrorSums& one : sums) errors.push_back(one.errors());
    return errors;
  }

  std::mt19937 random_{4};
  const std::unique_ptr<codec::Backend> backend_ = codec::CreateCpuBackend({}).value();
  const codec::BlockSpec raw_ = codec::FindCodec("fp16")->ForLayer(0, kShape.head_dim).value();
  std::vector<std::uint16_t> sinks_, window_;
  std::vector<std::unique_ptr<Page>> pages_;
  std::vector<const std::byte*> pointers_;
  std::vector<float> q_;
};

TEST_F(LayerErrorsTest, KeysMoveScoresAndValuesMoveOutputsAlone) {
  const std::vector<LayerErrors> errors =
      ErrorsOf({"fp16", "kivi-4-g64", "kivi-k4v2-g64", "kivi-2-g64"});
  const LayerErrors &exact = errors[0], &k4v4 = errors[1], &k4v2 = errors[2], &k2v2 = errors[3];
  EXPECT_EQ(exact.keys + exact.values + exact.scores + exact.output, 0);
  // Min-max codes of normal values, groups of 64: D = 0.0080 at 4 bits, 0.2025 at 2.
  EXPECT_NEAR(k4v4.keys, std::sqrt(0.0080), 0.01);
  EXPECT_NEAR(k4v4.values, std::sqrt(0.0080), 0.01);
  EXPECT_NEAR(k2v2.keys, std::sqrt(0.2025), 0.02);
  EXPECT_EQ(k4v2.keys, k4v4.keys);
  EXPECT_EQ(k4v2.scores, k4v4.scores);
  EXPECT_EQ(k4v2.values, k2v2.values);
  EXPECT_GT(k4v2.output, 2 * k4v4.output);
  EXPECT_GT(k2v2.scores, 2 * k4v4.scores);
  EXPECT_GT(k2v2.output, k4v2.output);
}

TEST_F(LayerErrorsTest, OutputIsThatOfTheDecodeAttention) {
  std::vector<float> exact(q_.size()), lossy(q_.size());
  const codec::BlockSpec spec = codec::FindCodec("kivi-2-g64")->ForLayer(0, 64).value();
  std::vector<std::unique_ptr<Page>> pages;
  std::vector<const std::byte*> pointers;
  for (const auto& page : pages_) {
    codec::KvView block;
    block.k = reinterpret_cast<const std::uint16_t*>(page->bytes);
    // A raw16 page is head-major, and a block is K, then V.
    block.v = block.k + codec::kBlockTokens * kShape.head_dim;
    block.kv_heads = kShape.kv_heads;
    block.tokens = codec::kBlockTokens;
    block.head_dim = kShape.head_dim;
    block.head_stride = 2LL * codec::kBlockTokens * kShape.head_dim;
    block.token_stride = kShape.head_dim;
    pages.push_back(std::make_unique<Page>());
    ASSERT_TRUE(backend_
                    ->Quantize(block, spec, {},
                               {pages.back()->bytes, codec::PageBytes(spec, kShape.kv_heads)})
                    .ok());
    pointers.push_back(pages.back()->bytes);
  }
  const auto attend = [&](const codec::BlockSpec& of, const codec::SequenceKv& sequence,
                          std::vector<float>& out) {
    return backend_->DecodeAttention({.spec = of,
                                      .q_heads = kShape.q_heads,
                                      .kv_heads = kShape.kv_heads,
                                      .scale = 0.125f,
                                      .sequences = std::span(&sequence, 1),
                                      .q = q_.data(),
                                      .out = out.data()});
  };
  codec::SequenceKv sequence = Sequence();
  ASSERT_TRUE(attend(raw_, sequence, exact).ok());
  sequence.pages = pointers;
  ASSERT_TRUE(attend(spec, sequence, lossy).ok());
  ErrorSums::Squares squares;
  for (std::size_t i = 0; i < exact.size(); ++i) squares.Add(exact[i], lossy[i]);
  EXPECT_NEAR(ErrorsOf({"kivi-2-g64"})[0].output, std::sqrt(squares.difference / squares.exact),
              2e-3);
}

}  // namespace
}  // namespace kvferry::calibrate
