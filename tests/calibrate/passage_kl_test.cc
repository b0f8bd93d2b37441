#include "calibrate/passage_kl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "bench/quality/host_device.h"
#include "bench/quality/measure.h"
#include "calibrate/layer_errors.h"
#include "calibrate/profile_search.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/bench/tiny_model.h"
#include "tests/model/temp_folder.h"

// A tiny model, a random text.
namespace kvferry::calibrate {
namespace {

using ::testing::HasSubstr;

constexpr PassageOptions kOptions{.prompt_tokens = 200, .decode_tokens = 70, .batch = 4};

void Ignore(std::string_view, int, int) {}

class PassageKlTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const model::TempFolder folder;
    const bench::TinyModelFolder files(folder.path());
    device_ =
        bench::HostDevice::Create(model::Model::Load({.path = folder.path(), .threads = 1}).value(),
                                  codec::CreateCpuBackend({.threads = 1}).value())
            .value()
            .release();
  }
  static void TearDownTestSuite() { delete device_; }
  PassageKlTest() {
    std::mt19937_64 random(5);
    for (int i = 0; i < 600; ++i) {
      tokens_.push_back(static_cast<std::int32_t>(random() % bench::TinyModelFolder::kVocabulary));
    }
    passages_ = bench::SpreadPassages(tokens_, 270, 2).value();
    exact_ = RunExactly(device_->model(), passages_, kOptions, Ignore).value();
  }
  static codec::Codec Find(const std::string& name) { return codec::FindCodec(name).value(); }
  std::vector<double> Kl(const std::vector<codec::Codec>& codecs, int batch = kOptions.batch) {
    PassageOptions options = kOptions;
    options.batch = batch;
    return PassageKl(*device_, exact_, options).Measure(codecs).value();
  }

  static bench::HostDevice* device_;
  std::vector<std::int32_t> tokens_;
  std::vector<bench::Passage> passages_;
  std::vector<ExactPassage> exact_;
};

bench::HostDevice* PassageKlTest::device_ = nullptr;

TEST_F(PassageKlTest, SaysWhatTheQualityBenchSays) {
  const auto measure = bench::Measure::Create(*device_,
                                              {.prompt_tokens = kOptions.prompt_tokens,
                                               .decode_tokens = kOptions.decode_tokens,
                                               .greedy_tokens = 0,
                                               .probe_tokens = 2},
                                              Ignore);
  ASSERT_TRUE(measure.ok()) << measure.status();
  std::vector<bench::ExactPassage> exact;
  for (const bench::Passage& passage : passages_) {
    exact.push_back(measure->RunExact(passage).value());
  }
  const std::vector<codec::Codec> codecs = {Find("kivi-2-g64"), Find("fp16"),
                                            Find("kivi-4-g64:layer.1=2/8")};
  const std::vector<double> ours = Kl(codecs);
  ASSERT_EQ(ours.size(), codecs.size());
  bench::ProbeTraces traces;
  for (const std::size_t i : {0, 2}) {
    double kl = 0;
    std::size_t positions = 0;
    const auto records = measure->RunCodec(codecs[i], passages_, exact, traces);
    ASSERT_TRUE(records.ok()) << records.status();
    for (const bench::Record& record : *records) {
      for (const double one : record.kl) kl += one;
      positions += record.kl.size();
    }
    EXPECT_NEAR(ours[i] / (kl / static_cast<double>(positions)), 1, 1e-3) << codecs[i].name;
  }
  EXPECT_LT(ours[1], 1e-5);
}

TEST_F(PassageKlTest, CodecsThatStepTogetherDoNotMix) {
  const std::vector<codec::Codec> codecs = {Find("kivi-2-g64"), Find("kivi-4-g64"), Find("int8")};
  const std::vector<double> together = Kl(codecs, 6), alone = Kl(codecs, 1);
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    EXPECT_NEAR(together[i] / alone[i], 1, 1e-3) << codecs[i].name;
  }
  EXPECT_GT(together[0], 2 * together[1]);
}

TEST_F(PassageKlTest, ALayerAloneLosesLessThanAll) {
  const codec::Codec base = Find("kivi-4-g64");
  const std::vector<codec::Codec> codecs = {
      CodecOfOne(base, 2, 0, {2, 2}).value(), CodecOfOne(base, 2, 1, {2, 2}).value(),
      CodecOf(base, std::vector<Pair>(2, {2, 2})).value(), Find("kivi-2-g64"), Find("fp16")};
  const std::vector<double> kl = Kl(codecs);
  EXPECT_GT(kl[0], 100 * kl[4]);
  EXPECT_GT(kl[1], 100 * kl[4]);
  EXPECT_LT(kl[0], kl[2]);
  EXPECT_LT(kl[1], kl[2]);
  EXPECT_NEAR(kl[2] / kl[3], 1, 1e-3);
}

TEST_F(PassageKlTest, ErrorsOfEveryLayerFallWithBits) {
  const std::vector<codec::Codec> codecs = {Find("kivi-2-g64"), Find("kivi-4-g64"),
                                            Find("kivi-4-g64:k_bits=8,v_bits=8")};
  const auto errors = MeasureErrors(*device_, exact_, codecs, kOptions, Ignore);
  ASSERT_TRUE(errors.ok()) << errors.status();
  ASSERT_EQ(errors->size(), 2u);
  for (const std::vector<LayerErrors>& layer : *errors) {
    ASSERT_EQ(layer.size(), 3u);
    for (int i = 0; i < 2; ++i) {
      EXPECT_GT(layer[i].keys, 3 * layer[i + 1].keys);
      EXPECT_GT(layer[i].values, 3 * layer[i + 1].values);
      EXPECT_GT(layer[i].scores, 2 * layer[i + 1].scores);
      EXPECT_GT(layer[i].output, 2 * layer[i + 1].output);
    }
    EXPECT_GT(layer[2].output, 0);
  }
}

TEST_F(PassageKlTest, WhatTheContextDoesNotHoldIsRefused) {
  PassageOptions options = kOptions;
  options.prompt_tokens = 955;
  const auto refused = RunExactly(device_->model(), passages_, options, Ignore);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("prompt_tokens is 955"));
}

}  // namespace
}  // namespace kvferry::calibrate
