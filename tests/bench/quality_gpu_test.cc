// The quality bench on a GPU against the same on CPUs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "bench/quality/open_device.h"
#include "bench/quality/quality.h"
#include "bench/quality/report.h"
#include "kernels/cuda/device.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/bench/tiny_model.h"
#include "tests/model/temp_folder.h"

namespace kvferry::bench {
namespace {

constexpr auto kQuiet = [](std::string_view, int, int) {};

class QualityGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kernels::DeviceCount() == 0) GTEST_SKIP() << "no GPU here";
    const TinyModelFolder files(folder_.path());
    for (std::unique_ptr<Device>* device : {&cpu_, &gpu_}) {
      auto opened = OpenDevice(
          {.path = folder_.path(), .threads = 2, .device = device == &cpu_ ? "cpu" : "cuda:0"});
      ASSERT_TRUE(opened.ok()) << opened.status();
      *device = *std::move(opened);
    }
    std::mt19937_64 random(5);
    for (int i = 0; i < 3000; ++i) {
      text_.tokens.push_back(static_cast<std::int32_t>(random() % TinyModelFolder::kVocabulary));
    }
    text_.check = "0";
  }

  std::string State(const Device& device) const {
    return (folder_ / (&device == gpu_.get() ? "gpu.jsonl" : "cpu.jsonl")).string();
  }

  const model::TempFolder folder_;
  std::unique_ptr<Device> cpu_, gpu_;
  Text text_;
};

TEST_F(QualityGpuTest, CodecsLoseWhatTheyLoseOnCpus) {
  const auto run = [&](Device& device) {
    return RunQuality({.state = State(device),
                       .codecs = ParseCodecs("kivi-4,kivi-2,int8,nqkv-nf4,kivi-2-g64,lm3").value(),
                       .measure = {.prompt_tokens = 300,
                                   .decode_tokens = 200,
                                   .greedy_tokens = 100,
                                   .probe_tokens = 90},
                       .passages = 3,
                       .batch = 2},
                      device, text_, kQuiet);
  };
  const auto cpu = run(*cpu_), gpu = run(*gpu_);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  EXPECT_NEAR(gpu->exact_perplexity.value / cpu->exact_perplexity.value, 1, 1e-3);
  EXPECT_NE(gpu->device, cpu->device);
  for (const Summary& row : gpu->rows) {
    const auto same = std::find_if(cpu->rows.begin(), cpu->rows.end(), [&](const Summary& other) {
      return other.codec.name == row.codec.name;
    });
    ASSERT_NE(same, cpu->rows.end());
    EXPECT_EQ(row.wire_bytes_per_token, same->wire_bytes_per_token) << row.codec.name;
    EXPECT_EQ(row.resident_bytes_per_token, same->resident_bytes_per_token) << row.codec.name;
    if (row.codec.kind == codec::BlockKind::kRaw16) {
      EXPECT_LT(row.kl.value, 1e-4) << row.codec.name;
      EXPECT_LT(row.trajectory_kl.value, 1e-4) << row.codec.name;
      continue;
    }
    EXPECT_NEAR(row.kl.value / same->kl.value, 1, 0.05) << row.codec.name;
    EXPECT_NEAR(row.mean_attention_error() / same->mean_attention_error(), 1, 0.05)
        << row.codec.name;
    EXPECT_GT(row.trajectory_kl.value, 0) << row.codec.name;
  }
  for (const SkippedCodec& skipped : gpu->skipped) EXPECT_EQ(skipped.codec, "lm3");
}

TEST_F(QualityGpuTest, TheReportSaysWhatItSaysOnCpus) {
  const auto backend = codec::CreateCpuBackend({.threads = 2}).value();
  const auto run = [&](Device& device) {
    return RunReport({.state = State(device),
                      .groups = {"rules", "levels", "rope", "production"},
                      .measure = {.prompt_tokens = 300, .decode_tokens = 100},
                      .passages = 2},
                     device, *backend, text_, kQuiet);
  };
  const auto cpu = run(*cpu_), gpu = run(*gpu_);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  ASSERT_EQ(cpu->rows.size(), gpu->rows.size());
  for (std::size_t i = 0; i < cpu->rows.size(); ++i) {
    EXPECT_NEAR(gpu->rows[i].kl.value / cpu->rows[i].kl.value, 1, 0.05) << gpu->rows[i].codec.name;
    EXPECT_EQ(gpu->rows[i].bits, cpu->rows[i].bits);
  }
  for (std::size_t layer = 0; layer < cpu->correlations.size(); ++layer) {
    EXPECT_NEAR(gpu->correlations[layer].keys.mean, cpu->correlations[layer].keys.mean, 1e-3);
  }
}

}  // namespace
}  // namespace kvferry::bench
