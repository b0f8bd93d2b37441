// The model on a GPU against the same model on CPUs, and against what transformers computes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/event.h"
#include "tests/kernels/gpu_test.h"
#include "tests/model/run_model.h"

namespace kvferry::model {
namespace {

class DeviceModelGpuTest : public kernels::GpuTest {
 protected:
  // K and V of one layer, which are in device memory when the stream is there.
  void AppendFromDevice(int layer, const codec::KvView& kv, ExactAttention& attention) {
    const std::size_t values = static_cast<std::size_t>(kv.head_stride) * kv.kv_heads;
    std::vector<std::uint16_t> k(values), v(values);
    ASSERT_TRUE(kernels::CopyAsync(k.data(), kv.k, values * 2, stream()).ok());
    ASSERT_TRUE(kernels::CopyAsync(v.data(), kv.v, values * 2, stream()).ok());
    ASSERT_TRUE(stream().Synchronize().ok());
    codec::KvView host = kv;
    host.k = k.data();
    host.v = v.data();
    attention.Append(layer, 0, host);
  }

  std::unique_ptr<Model> Load(const std::string& file, ComputeType compute) {
    auto model = Model::Load({.path = (kGolden / "tiny" / file).string(),
                              .compute = compute,
                              .device = "cuda:0",
                              .stream = stream().get()});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
};

TEST_F(DeviceModelGpuTest, LogitsEqualTransformers) {
  const auto golden = ReadGolden("tiny.json");
  for (const char* name : {"llama2", "llama3", "mistral", "qwen2", "qwen3_sharded"}) {
    const auto ids = golden.at(name).at("ids").get<std::vector<std::int32_t>>();
    const auto expected = golden.at(name).at("logits").get<std::vector<float>>();
    const auto exact = Load(name, ComputeType::kFp32);
    const auto rounded = Load(name, ComputeType::kBf16);
    for (const std::size_t chunk : {ids.size(), std::size_t{64}, std::size_t{1}}) {
      EXPECT_LT(LargestDifference(PromptLogits(*exact, ids, chunk), expected), 1e-3)
          << name << " " << chunk;
      EXPECT_LT(LargestDifference(PromptLogits(*rounded, ids, chunk), expected), 0.3)
          << name << " " << chunk;
    }
  }
}

TEST_F(DeviceModelGpuTest, DecodeStepsContinueThePrompt) {
  constexpr std::size_t kSteps = 10;
  const auto golden = ReadGolden("tiny.json").at("llama3");
  const auto ids = golden.at("ids").get<std::vector<std::int32_t>>();
  const auto expected = golden.at("logits").get<std::vector<float>>();
  const auto model = Load("llama3", ComputeType::kFp32);
  ExactAttention attention(model->config(), 1, codec::Raw16::kBf16);
  const std::size_t prompt = ids.size() - kSteps;
  PromptLogits(
      *model, std::span(ids).first(prompt), 64,
      [&](int layer, const codec::KvView& kv) {
        if (kv.tokens == static_cast<int>(prompt)) AppendFromDevice(layer, kv, attention);
        return absl::OkStatus();
      },
      codec::Raw16::kBf16);
  std::vector<float> logits(expected.size());
  for (std::size_t i = prompt; i < ids.size(); ++i) {
    const std::vector<std::int32_t> token = {ids[i]}, position = {static_cast<int>(i)};
    ASSERT_TRUE(model->DecodeStep(token, position, attention, logits).ok());
  }
  EXPECT_LT(LargestDifference(logits, expected), 0.05);
}

}  // namespace
}  // namespace kvferry::model
