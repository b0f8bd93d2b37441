#include "calibrate/codebook_training.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kvcodec/half.h"

namespace kvferry::calibrate {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::HasSubstr;

// One head of 64 channels in groups of two with 16 centroids.
constexpr codec::CodebookShape kShape = {
    .layers = 1, .kv_heads = 1, .head_dim = 64, .coupling = {.channels = 2, .bits = 4}};

codec::KeyRotation Rotation(int head_dim) {
  std::vector<float> frequencies;
  for (int i = 0; i < head_dim / 2; ++i) {
    frequencies.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / head_dim));
  }
  return codec::KeyRotation(frequencies);
}

// What RoPE makes of one head at `position`, in double.
void Turn(std::span<float> head, std::span<const float> frequencies, int position) {
  const std::size_t half = frequencies.size();
  for (std::size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    const double low = head[i], high = head[i + half];
    head[i] = static_cast<float>(low * std::cos(angle) - high * std::sin(angle));
    head[i + half] = static_cast<float>(high * std::cos(angle) + low * std::sin(angle));
  }
}

struct Sequence {
  std::vector<float> k, v, k_gradient, v_gradient;
  model::KvGradient view() const { return {k, v, k_gradient, v_gradient}; }
};

Sequence Random(const codec::CodebookShape& shape, int tokens, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Sequence sequence;
  for (auto* values : {&sequence.k, &sequence.v, &sequence.k_gradient, &sequence.v_gradient}) {
    for (int i = 0; i < tokens * shape.kv_heads * shape.head_dim; ++i) {
      values->push_back(normal(random));
    }
  }
  return sequence;
}

LayerSamples SamplesOf(const codec::CodebookShape& shape, const Sequence& sequence,
                       int first_token = 0) {
  LayerSamples samples(shape);
  const absl::Status added = samples.Add(Rotation(shape.head_dim), sequence.view(), first_token);
  EXPECT_TRUE(added.ok()) << added;
  return samples;
}

TEST(LayerSamplesTest, KeysAreThoseBeforeRope) {
  const codec::CodebookShape shape = {
      .layers = 1, .kv_heads = 2, .head_dim = 64, .coupling = {.channels = 4, .bits = 8}};
  const codec::KeyRotation rotation = Rotation(64);
  Sequence turned = Random(shape, 40, 1);
  const Sequence before = turned;
  for (std::size_t at = 0; at < turned.k.size(); at += 64) {
    const int token = static_cast<int>(at / 128);
    Turn(std::span(turned.k).subspan(at, 64), rotation.frequencies(), token);
    Turn(std::span(turned.k_gradient).subspan(at, 64), rotation.frequencies(), token);
  }
  const LayerSamples samples = SamplesOf(shape, turned, 4);
  ASSERT_EQ(samples.groups().size(), 2u * 2 * 16);
  for (int i = 0; i < 64; ++i) {
    const int head = i / 32, is_v = i / 16 % 2, group = i % 16;
    const LayerSamples::Group& got = samples.groups()[i];
    ASSERT_EQ(got.weights.size(), 36u) << "four tokens are left out";
    ASSERT_EQ(got.vectors.size(), 36u * 4);
    for (std::size_t n = 0; n < 36; ++n) {
      const std::size_t at = (n + 4) * 128 + head * 64 + group * 4;
      const std::vector<float>& values = is_v != 0 ? before.v : before.k;
      const std::vector<float>& gradient = is_v != 0 ? before.v_gradient : before.k_gradient;
      float weight = 0;
      for (int c = 0; c < 4; ++c) {
        EXPECT_NEAR(got.vectors[n * 4 + c], values[at + c], 2e-6);
        weight += gradient[at + c] * gradient[at + c];
      }
      EXPECT_NEAR(got.weights[n], weight, 1e-5 * (1 + weight));
    }
  }
}

TEST(LayerSamplesTest, RefusesWhatIsNotFiniteAndOtherSizes) {
  LayerSamples samples(kShape);
  const codec::KeyRotation rotation = Rotation(64);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Sequence sequence = Random(kShape, 8, 2);
    sequence.v_gradient[3 * 64 + 5] = bad;
    const absl::Status status = samples.Add(rotation, sequence.view(), 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("value's gradient of token 3"));
  }
  Sequence shorter = Random(kShape, 8, 2);
  shorter.k_gradient.pop_back();
  EXPECT_EQ(samples.Add(rotation, shorter.view(), 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(samples.Add(Rotation(128), Random(kShape, 8, 2).view(), 0).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(samples.groups()[0].weights.empty());
  EXPECT_EQ(TrainLayer(samples, 0, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

// Every group of keys and of values takes 16 values, all exact in fp16.
Sequence Planted(int tokens) {
  Sequence sequence = Random(kShape, tokens, 3);
  std::mt19937_64 random(4);
  const codec::KeyRotation rotation = Rotation(64);
  for (int token = 0; token < tokens; ++token) {
    for (int i = 0; i < 64; i += 2) {
      const auto pick = static_cast<int>(random() % 16);
      float* k = sequence.k.data() + token * 64 + i;
      float* v = sequence.v.data() + token * 64 + i;
      k[0] = static_cast<float>(i + pick % 4), k[1] = static_cast<float>(-8 * (pick / 4));
      v[0] = 0.25f * static_cast<float>(pick), v[1] = static_cast<float>(i);
    }
    Turn(std::span(sequence.k).subspan(token * 64, 64), rotation.frequencies(), token);
  }
  return sequence;
}

TEST(TrainLayerTest, FindsPlantedCentroids) {
  const LayerSamples samples = SamplesOf(kShape, Planted(600));
  const auto books = TrainLayer(samples, 0, {});
  ASSERT_TRUE(books.ok()) << books.status();
  ASSERT_EQ(books->centroids.size(), kShape.values());
  EXPECT_LT(books->k.weighted.error(), 1e-3);
  EXPECT_LT(books->k.plain.error(), 1e-3);
  EXPECT_LT(books->v.plain.error(), 1e-6);
  EXPECT_GT(books->k.plain.exact, 0);
  // Order: keys, then values; by groups.
  for (int group = 0; group < 32; ++group) {
    for (int code = 0; code < 16; ++code) {
      const std::size_t k = static_cast<std::size_t>(group * 16 + code) * 2;
      const std::size_t v = kShape.side_values() + k;
      const float low = codec::FloatFromHalf(books->centroids[k]);
      EXPECT_GE(low, 2 * group - 0.01);
      EXPECT_LE(low, 2 * group + 3.01);
      EXPECT_EQ(codec::FloatFromHalf(books->centroids[v + 1]), 2 * group);
    }
  }
}

TEST(TrainLayerTest, GradientsDecideWhereCentroidsAre) {
  // One channel pair spread over [0, 1]; only what is below 0.25 matters.
  Sequence sequence = Random(kShape, 2000, 5);
  std::mt19937_64 random(6);
  for (std::size_t i = 0; i < sequence.v.size(); ++i) {
    sequence.v[i] = static_cast<float>(random() >> 11) * 0x1p-53f;
    if (i % 2 == 1) sequence.v[i] = 0;
  }
  for (std::size_t i = 0; i < sequence.v.size(); i += 2) {
    sequence.v_gradient[i] = sequence.v[i] < 0.25f ? 1.0f : 1e-4f;
    sequence.v_gradient[i + 1] = 0;
  }
  const LayerSamples samples = SamplesOf(kShape, sequence);
  const auto share = [&](bool weighted) {
    const LayerCodebooks books = TrainLayer(samples, 0, {.weighted = weighted}).value();
    int below = 0;
    for (std::size_t i = kShape.side_values(); i < books.centroids.size(); i += 2) {
      below += codec::FloatFromHalf(books.centroids[i]) < 0.25f ? 1 : 0;
    }
    return std::pair(below / (32 * 16.0), books.v);
  };
  const auto [with, with_errors] = share(true);
  const auto [without, without_errors] = share(false);
  EXPECT_GT(with, 0.8);
  EXPECT_NEAR(without, 0.25, 0.05);
  // Each is best at what it was made for.
  EXPECT_LT(with_errors.weighted.error(), 0.5 * without_errors.weighted.error());
  EXPECT_GT(with_errors.plain.error(), 2 * without_errors.plain.error());
}

TEST(TrainLayerTest, TheSameWithEveryNumberOfThreads) {
  const LayerSamples samples = SamplesOf(kShape, Random(kShape, 500, 8));
  const auto train = [&](int layer, std::uint64_t seed, int threads) {
    return TrainLayer(samples, layer, {.seed = seed, .threads = threads}).value();
  };
  const LayerCodebooks first = train(0, 1, 1);
  for (const int threads : {1, 2, 5}) {
    const LayerCodebooks again = train(0, 1, threads);
    EXPECT_EQ(again.centroids, first.centroids) << threads;
    EXPECT_EQ(again.k.weighted.difference, first.k.weighted.difference);
  }
  EXPECT_NE(train(0, 2, 1).centroids, first.centroids);
  EXPECT_NE(train(1, 1, 1).centroids, first.centroids) << "layers have streams of their own";
}

TEST(TrainLayerTest, ErrorsAreThoseOfTheRoundedCentroids) {
  // 2049 is between two values of fp16; both channels are the same for all tokens.
  Sequence sequence = Random(kShape, 10, 9);
  for (float& value : sequence.v) value = 2049;
  const LayerCodebooks books = TrainLayer(SamplesOf(kShape, sequence), 0, {}).value();
  EXPECT_NEAR(books.v.plain.error(), 1.0 / 2049, 1e-7);
  EXPECT_NEAR(books.v.weighted.error(), 1.0 / 2049, 1e-7);
  EXPECT_THAT(std::vector(books.centroids.begin() + static_cast<long>(kShape.side_values()),
                          books.centroids.end()),
              Each(codec::HalfFromFloat(2049)));
}

TEST(TrainLayerTest, GradientsOfZeroCountAllTokensTheSame) {
  Sequence sequence = Random(kShape, 200, 10);
  sequence.k_gradient.assign(sequence.k_gradient.size(), 0);
  sequence.v_gradient.assign(sequence.v_gradient.size(), 0);
  const LayerSamples samples = SamplesOf(kShape, sequence);
  const LayerCodebooks books = TrainLayer(samples, 0, {}).value();
  EXPECT_EQ(books.centroids, TrainLayer(samples, 0, {.weighted = false})->centroids);
  EXPECT_EQ(books.v.weighted.error(), 0) << "of nothing";
  EXPECT_GT(books.v.plain.error(), 0);
}

TEST(TrainLayerTest, WhatFp16DoesNotHoldIsRefused) {
  Sequence sequence = Random(kShape, 50, 11);
  sequence.v[7 * 64] = 1e6f;
  EXPECT_EQ(TrainLayer(SamplesOf(kShape, sequence), 0, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TrainLayerTest, TheFormatTakesThem) {
  const LayerCodebooks books = TrainLayer(SamplesOf(kShape, Random(kShape, 5, 12)), 0, {}).value();
  const codec::KeyRotation rotation = Rotation(64);
  const auto made = codec::Codebooks::Create(kShape, rotation.frequencies(), books.centroids, "{}");
  ASSERT_TRUE(made.ok()) << made.status();
}

}  // namespace
}  // namespace kvferry::calibrate
