#include "model/kv_gradients.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "kvcodec/half.h"
#include "tests/bench/tiny_model.h"
#include "tests/model/run_model.h"
#include "tests/model/temp_folder.h"

namespace kvferry::model {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Tokens = std::vector<std::int32_t>;

// Of one layer, [tokens, kv_heads, head_dim].
struct Layer {
  std::vector<float> k, v, k_gradient, v_gradient;
};

std::map<int, Layer> GradientsOf(KvGradients& gradients, std::span<const std::int32_t> tokens) {
  std::map<int, Layer> layers;
  const absl::Status status = gradients.Run(tokens, [&](int layer, const KvGradient& of) {
    const auto copy = [](std::span<const float> from) {
      return std::vector<float>(from.begin(), from.end());
    };
    layers[layer] = {copy(of.k), copy(of.v), copy(of.k_gradient), copy(of.v_gradient)};
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return layers;
}

// One key or value channel, and what is added to it.
struct Nudge {
  int layer = 0, token = 0, kv_head = 0, channel = 0;
  bool is_v = false;
  float by = 0;
};

// Exact attention of one sequence in plain loops, over keys and values of which one is nudged.
class NudgedAttention : public DecodeAttention {
 public:
  NudgedAttention(const ModelConfig& config, const Nudge& nudge)
      : config_(config), nudge_(nudge), layers_(config.layers) {}

  codec::Raw16 raw_type() const override { return codec::Raw16::kFp16; }

  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    Cache& cache = layers_[layer];
    const std::size_t row = static_cast<std::size_t>(config_.kv_heads) * config_.head_dim;
    const auto token = static_cast<int>(cache.k.size() / row);
    for (std::size_t i = 0; i < row; ++i) {
      cache.k.push_back(codec::FloatFromHalf(k[i]));
      cache.v.push_back(codec::FloatFromHalf(v[i]));
    }
    if (layer == nudge_.layer && token == nudge_.token) {
      (nudge_.is_v ? cache.v
                   : cache.k)[token * row + nudge_.kv_head * config_.head_dim + nudge_.channel] +=
          nudge_.by;
    }
    for (int head = 0; head < config_.q_heads; ++head) {
      const int kv_head = head / (config_.q_heads / config_.kv_heads);
      Attend(q + head * config_.head_dim, cache, kv_head * config_.head_dim, row,
             out + head * config_.head_dim);
    }
    return absl::OkStatus();
  }

 private:
  struct Cache {
    std::vector<float> k, v;  // [tokens, kv_heads, head_dim]
  };

  void Attend(const float* q, const Cache& cache, std::size_t offset, std::size_t row,
              float* out) const {
    std::vector<double> weights;
    double total = 0;
    for (std::size_t at = offset; at < cache.k.size(); at += row) {
      double score = 0;
      for (int i = 0; i < config_.head_dim; ++i)
        score += static_cast<double>(q[i]) * cache.k[at + i];
      weights.push_back(std::exp(score / std::sqrt(config_.head_dim)));
      total += weights.back();
    }
    for (int i = 0; i < config_.head_dim; ++i) {
      double sum = 0;
      for (std::size_t t = 0; t < weights.size(); ++t)
        sum += weights[t] * cache.v[t * row + offset + i];
      out[i] = static_cast<float>(sum / total);
    }
  }

  const ModelConfig& config_;
  const Nudge nudge_;
  std::vector<Cache> layers_;
};

// Cross-entropy of the next tokens, summed, by decode steps of the other implementation.
double Loss(Model& model, std::span<const std::int32_t> tokens, const Nudge& nudge) {
  NudgedAttention attention(model.config(), nudge);
  std::vector<float> logits(static_cast<std::size_t>(model.config().vocabulary));
  double loss = 0;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    const Tokens token = {tokens[i]}, position = {static_cast<int>(i)};
    const absl::Status status = model.DecodeStep(token, position, attention, logits);
    EXPECT_TRUE(status.ok()) << status;
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit));
    loss += std::log(total) - logits[static_cast<std::size_t>(tokens[i + 1])];
  }
  return loss;
}

// By central differences. The decode steps round K and V to fp16: what a nudge changes in later
// layers comes in steps of that.
double Difference(Model& model, std::span<const std::int32_t> tokens, Nudge nudge) {
  nudge.by = 0.02f;
  const double up = Loss(model, tokens, nudge);
  nudge.by = -nudge.by;
  return (up - Loss(model, tokens, nudge)) / (2 * 0.02);
}

float Largest(const std::vector<float>& values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

void ExpectDifferences(Model& model, std::span<const std::int32_t> tokens,
                       const std::map<int, Layer>& layers, Nudge nudge) {
  const ModelConfig& config = model.config();
  const Layer& layer = layers.at(nudge.layer);
  const std::size_t at =
      (static_cast<std::size_t>(nudge.token) * config.kv_heads + nudge.kv_head) * config.head_dim +
      nudge.channel;
  for (const bool is_v : {false, true}) {
    nudge.is_v = is_v;
    const std::vector<float>& gradient = is_v ? layer.v_gradient : layer.k_gradient;
    const double tolerance = (nudge.layer + 1 == config.layers ? 0.01 : 0.06) * Largest(gradient);
    ASSERT_GT(tolerance, 0);
    EXPECT_NEAR(gradient[at], Difference(model, tokens, nudge), tolerance)
        << (is_v ? "v" : "k") << " of layer " << nudge.layer << ", token " << nudge.token
        << ", head " << nudge.kv_head << ", channel " << nudge.channel;
  }
}

class KvGradientsTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {
 protected:
  void SetUp() override {
    path_ = (kGolden / "tiny" / GetParam().first).string();
    auto loaded = KvGradients::Load(path_, 1);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    gradients_ = *std::move(loaded);
    model_ = Model::Load({.path = path_, .threads = 1}).value();
    tokens_ = ReadGolden("tiny.json").at(GetParam().second).at("ids").get<Tokens>();
  }

  std::string path_;
  std::unique_ptr<KvGradients> gradients_;
  std::unique_ptr<Model> model_;
  Tokens tokens_;
};

TEST_P(KvGradientsTest, KeysAndValuesAreThoseOfThePrompt) {
  EXPECT_EQ(gradients_->weights_hash(), model_->weights_hash());
  const std::map<int, Layer> layers = GradientsOf(*gradients_, tokens_);
  ASSERT_EQ(static_cast<int>(layers.size()), model_->config().layers);
  PromptLogits(*model_, tokens_, tokens_.size(), [&](int layer, const codec::KvView& kv) {
    const Layer& ours = layers.at(layer);
    std::size_t at = 0;
    for (int token = 0; token < kv.tokens; ++token) {
      for (int head = 0; head < kv.kv_heads; ++head) {
        for (int i = 0; i < kv.head_dim; ++i, ++at) {
          const auto offset = head * kv.head_stride + token * kv.token_stride + i;
          EXPECT_NEAR(ours.k[at], codec::FloatFromHalf(kv.k[offset]),
                      1e-3 + 1e-3 * std::abs(ours.k[at]));
          EXPECT_NEAR(ours.v[at], codec::FloatFromHalf(kv.v[offset]),
                      1e-3 + 1e-3 * std::abs(ours.v[at]));
        }
      }
    }
    EXPECT_EQ(at, ours.k.size());
    return absl::OkStatus();
  });
}

TEST_P(KvGradientsTest, EqualFiniteDifferences) {
  const auto tokens = std::span(tokens_).first(12);
  const std::map<int, Layer> layers = GradientsOf(*gradients_, tokens);
  const ModelConfig& config = model_->config();
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const int token : {0, 5, 10}) {
      for (int head = 0; head < config.kv_heads; ++head) {
        for (const int channel : {0, config.head_dim / 2 + 1, config.head_dim - 1}) {
          ExpectDifferences(*model_, tokens, layers, {layer, token, head, channel});
        }
      }
    }
  }
}

TEST_P(KvGradientsTest, WhatNoLossComesAfterHasNone) {
  const std::map<int, Layer> layers = GradientsOf(*gradients_, tokens_);
  const std::size_t row =
      static_cast<std::size_t>(model_->config().kv_heads) * model_->config().head_dim;
  for (const auto& [index, layer] : layers) {
    for (const std::vector<float>* gradient : {&layer.k_gradient, &layer.v_gradient}) {
      const std::vector<float> last(gradient->end() - static_cast<long>(row), gradient->end());
      const std::vector<float> before(gradient->end() - 2 * static_cast<long>(row),
                                      gradient->end() - static_cast<long>(row));
      EXPECT_THAT(last, Each(0.0f)) << index;
      EXPECT_THAT(before, Not(Each(0.0f))) << index;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, KvGradientsTest, TinyModels(), TinyModelName);

// More tokens than have their logits in memory at once.
TEST(KvGradientsLongTest, EqualFiniteDifferences) {
  const TempFolder folder;
  const bench::TinyModelFolder files(folder.path());
  const auto gradients = KvGradients::Load(folder.path(), 2);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  const auto model = Model::Load({.path = folder.path(), .threads = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  std::mt19937_64 random(2);
  Tokens tokens(300);
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(random() % bench::TinyModelFolder::kVocabulary);
  }
  const std::map<int, Layer> layers = GradientsOf(**gradients, tokens);
  for (const int token : {1, 254, 255, 256, 290}) {
    ExpectDifferences(**model, tokens, layers, {(*model)->config().layers - 1, token, 0, 3});
  }
}

TEST(KvGradientsRunTest, LayersComeFromTheLastAndAStatusEndsTheRun) {
  const auto gradients = KvGradients::Load((kGolden / "tiny/llama2").string(), 1);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  std::vector<int> layers;
  EXPECT_TRUE((*gradients)
                  ->Run(Tokens{1, 2, 3},
                        [&](int layer, const KvGradient&) {
                          layers.push_back(layer);
                          return absl::OkStatus();
                        })
                  .ok());
  EXPECT_THAT(layers, ElementsAre(1, 0));
  layers.clear();
  EXPECT_EQ((*gradients)
                ->Run(Tokens{1, 2, 3},
                      [&](int layer, const KvGradient&) {
                        layers.push_back(layer);
                        return absl::CancelledError("enough");
                      }),
            absl::CancelledError("enough"));
  EXPECT_THAT(layers, ElementsAre(1));
}

TEST(KvGradientsRunTest, WhatCannotRunIsNamed) {
  const auto gradients = KvGradients::Load((kGolden / "tiny/llama2").string(), 1);
  ASSERT_TRUE(gradients.ok()) << gradients.status();
  const auto run = [&](const Tokens& tokens) {
    const absl::Status status =
        (*gradients)->Run(tokens, [](int, const KvGradient&) { return absl::OkStatus(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(run({}), HasSubstr("0 tokens"));
  EXPECT_THAT(run({1}), HasSubstr("1 tokens"));
  EXPECT_THAT(run({1, -1}), HasSubstr("token -1 at index 1"));
  run({1, 64});
  run(Tokens(257, 1));
  EXPECT_EQ(KvGradients::Load("no/such/model", 1).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(KvGradients::Load((kGolden / "tiny/llama2").string(), -1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(KvGradientsRunTest, FrequenciesAreThoseOfTheModel) {
  const auto llama2 = KvGradients::Load((kGolden / "tiny/llama2").string(), 1);
  ASSERT_TRUE(llama2.ok()) << llama2.status();
  const std::vector<float> frequencies = (*llama2)->rope_frequencies();
  ASSERT_EQ(frequencies.size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(frequencies[i], std::pow(1e4, -i / 4.0), 1e-6);
}

}  // namespace
}  // namespace kvferry::model
