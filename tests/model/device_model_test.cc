#include "model/device_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "common/status_macros.h"
#include "kvcodec/half.h"
#include "tests/model/run_model.h"

namespace kvferry::model {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Model> LoadOnCpu(const std::string& file, ComputeType compute) {
  const LoadOptions options{.path = (kGolden / "tiny" / file).string(), .compute = compute};
  auto files = WeightFiles::Open(options.path);
  EXPECT_TRUE(files.ok()) << files.status();
  auto model = LoadDeviceModel(*files, options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// The tensors of the GPU path on the CPU, against what transformers computes.
class DeviceModelTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {
 protected:
  void SetUp() override {
    const auto expected = ReadGolden("tiny.json").at(GetParam().second);
    ids_ = expected.at("ids").get<std::vector<std::int32_t>>();
    expected_ = expected.at("logits").get<std::vector<float>>();
  }

  std::vector<std::int32_t> ids_;
  std::vector<float> expected_;
};

TEST_P(DeviceModelTest, LogitsEqualTransformers) {
  const auto model = LoadOnCpu(GetParam().first, ComputeType::kFp32);
  for (const std::size_t chunk : {ids_.size(), std::size_t{64}, std::size_t{1}}) {
    EXPECT_LT(LargestDifference(PromptLogits(*model, ids_, chunk), expected_), 1e-4) << chunk;
  }
}

TEST_P(DeviceModelTest, ScoreGivesTheLogitsOfEveryToken) {
  const auto model_ = LoadOnCpu(GetParam().first, ComputeType::kFp32);
  const std::span<const std::int32_t> ids = ids_;
  const std::size_t begin = ids.size() / 2, vocabulary = expected_.size();
  auto session = model_->StartPrefill(static_cast<int>(ids.size()), codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE((*session)->Run(ids.first(begin), Ignore).ok());
  std::vector<float> logits((ids.size() - begin) * vocabulary);
  EXPECT_FALSE((*session)->Score(ids.subspan(begin), std::span(logits).first(vocabulary)).ok());
  const absl::Status scored = (*session)->Score(ids.subspan(begin), logits);
  ASSERT_TRUE(scored.ok()) << scored;
  for (std::size_t end = begin + 1; end <= ids.size(); end += 7) {
    const auto row = std::span(logits).subspan((end - begin - 1) * vocabulary, vocabulary);
    EXPECT_LT(LargestDifference(row, PromptLogits(*model_, ids.first(end), end)), 1e-4) << end;
  }
  EXPECT_LT(LargestDifference((*session)->logits(), expected_), 1e-4);
}

TEST_P(DeviceModelTest, RewindForgetsWhatFollowed) {
  const auto model = LoadOnCpu(GetParam().first, ComputeType::kFp32);
  ExpectRewindForgets(*model, ids_, expected_, 1e-4);
}

TEST_P(DeviceModelTest, DecodeStepsContinueThePrompt) {
  constexpr std::size_t kSteps = 10;
  const auto model = LoadOnCpu(GetParam().first, ComputeType::kFp32);
  const std::span<const std::int32_t> ids = ids_;
  const auto logits = DecodeLogits(*model, ids.first(ids.size() - kSteps), ids.last(kSteps), 3);
  for (int i = 0; i < 3; ++i) {
    const auto one = std::span(logits.back()).subspan(i * expected_.size(), expected_.size());
    EXPECT_LT(LargestDifference(one, expected_), 0.05);  // K and V are rounded to bf16
  }
}

// A cache "on the device" where that is the CPU.
class AttentionOnDevice : public DeviceDecodeAttention {
 public:
  explicit AttentionOnDevice(const ModelConfig& config)
      : config_(config), exact_(config, 1, codec::Raw16::kBf16) {}

  ExactAttention& exact() { return exact_; }
  codec::Raw16 raw_type() const override { return codec::Raw16::kBf16; }
  absl::Status AppendAndAttend(int layer, const std::uint16_t* q, const std::uint16_t* k,
                               const std::uint16_t* v, std::uint16_t* out) override {
    const auto values = static_cast<std::size_t>(config_.q_heads) * config_.head_dim;
    std::vector<float> queries(values), attended(values);
    std::transform(q, q + values, queries.begin(), codec::FloatFromBf16);
    KVF_RETURN_IF_ERROR(exact_.AppendAndAttend(layer, queries.data(), k, v, attended.data()));
    std::transform(attended.begin(), attended.end(), out, codec::Bf16FromFloat);
    return absl::OkStatus();
  }

 private:
  const ModelConfig config_;
  ExactAttention exact_;
};

TEST_P(DeviceModelTest, DecodeStepsOnTheDeviceContinueThePrompt) {
  constexpr std::size_t kSteps = 10;
  const auto model = LoadOnCpu(GetParam().first, ComputeType::kFp32);
  const std::size_t prompt = ids_.size() - kSteps;
  AttentionOnDevice attention(model->config());
  PromptLogits(
      *model, std::span(ids_).first(prompt), prompt,
      [&](int layer, const codec::KvView& kv) {
        attention.exact().Append(layer, 0, kv);
        return absl::OkStatus();
      },
      codec::Raw16::kBf16);
  auto steps = model->StartDeviceSteps(2, attention);
  ASSERT_TRUE(steps.ok()) << steps.status();
  std::vector<float> logits(expected_.size());
  for (std::size_t i = prompt; i < ids_.size(); ++i) {
    const std::vector<std::int32_t> token = {ids_[i]}, position = {static_cast<int>(i)};
    ASSERT_TRUE((*steps)->SetInputs(token, position).ok());
    const absl::Status status = (*steps)->Enqueue();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE((*steps)->FetchLogits(logits).ok());
  }
  EXPECT_EQ((*steps)->SetInputs(std::vector(3, 1), std::vector(3, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*steps)->FetchLogits(std::span(logits).first(1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_LT(LargestDifference(logits, expected_), 0.1);  // all 16-bit values are bf16
}

TEST_P(DeviceModelTest, Bf16IsClose) {
  const auto model = LoadOnCpu(GetParam().first, ComputeType::kBf16);
  EXPECT_LT(LargestDifference(PromptLogits(*model, ids_, 64), expected_), 0.3);
}

INSTANTIATE_TEST_SUITE_P(All, DeviceModelTest, TinyModels(), TinyModelName);

TEST(DeviceModelErrorTest, WhatCannotRunIsNamed) {
  const auto model = LoadOnCpu("llama2", ComputeType::kFp32);
  auto session = model->StartPrefill(4, codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok());
  const auto run = [&](std::vector<std::int32_t> ids) {
    return std::string((*session)->Run(ids, Ignore).message());
  };
  EXPECT_THAT(run({}), HasSubstr("no tokens"));
  EXPECT_THAT(run({1, 2, 3, 4, 5}), HasSubstr("made for 4"));
  EXPECT_THAT(run({1, -1}), HasSubstr("token -1 at index 1"));
  EXPECT_FALSE(model->StartPrefill(0, codec::Raw16::kFp16).ok());
}

TEST(DeviceModelErrorTest, AStatusOfTheLayerEndsTheRun) {
  const auto model = LoadOnCpu("llama2", ComputeType::kFp32);
  auto session = model->StartPrefill(4, codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok());
  const std::vector<std::int32_t> ids = {1, 2};
  int layers = 0;
  EXPECT_EQ((*session)->Run(ids,
                            [&](int, const codec::KvView&) {
                              ++layers;
                              return absl::CancelledError("enough");
                            }),
            absl::CancelledError("enough"));
  EXPECT_EQ(layers, 1);
}

TEST(DeviceModelErrorTest, DevicesThatAreNotThere) {
  int no_stream = 0;
  const auto load = [&](const std::string& device, void* stream) {
    return Model::Load(
               {.path = (kGolden / "tiny/llama2").string(), .device = device, .stream = stream})
        .status();
  };
  for (const char* name : {"gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:999"}) {
    EXPECT_EQ(load(name, &no_stream).code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_THAT(std::string(load("cuda:0", nullptr).message()), HasSubstr("without a stream"));
}

}  // namespace
}  // namespace kvferry::model
