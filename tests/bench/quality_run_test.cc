#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/quality/host_device.h"
#include "bench/quality/passkey.h"
#include "bench/quality/prompt.h"
#include "bench/quality/quality.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/bench/byte_tokenizer.h"
#include "tests/bench/tiny_model.h"
#include "tests/model/temp_folder.h"

// A tiny model, a random text, the whole bench.
namespace kvferry::bench {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::HasSubstr;

class QualityRunTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const model::TempFolder folder;
    const TinyModelFolder files(folder.path());
    device_ = HostDevice::Create(model::Model::Load({.path = folder.path(), .threads = 2}).value(),
                                 codec::CreateCpuBackend({.threads = 2}).value())
                  .value()
                  .release();
  }
  static void TearDownTestSuite() { delete device_; }

  QualityRunTest() {
    std::mt19937_64 random(5);
    for (int i = 0; i < 3000; ++i) {
      text_.tokens.push_back(static_cast<std::int32_t>(random() % TinyModelFolder::kVocabulary));
    }
    text_.check = "0";
    options_ = {.state = (folder_ / "state.jsonl").string(),
                .measure = {.prompt_tokens = 200,
                            .decode_tokens = 140,
                            .greedy_tokens = 12,
                            .probe_tokens = 20},
                .passages = 3,
                .batch = 2};
  }

  absl::StatusOr<QualityResult> Run(const std::string& codecs) {
    options_.codecs = ParseCodecs(codecs).value();
    return RunQuality(options_, *device_, text_,
                      [this](std::string_view what, int, int) { seen_.emplace_back(what); });
  }

  static HostDevice* device_;
  const model::TempFolder folder_;
  Text text_;
  QualityOptions options_;
  std::vector<std::string> seen_;  // what progress has named
};

HostDevice* QualityRunTest::device_ = nullptr;

TEST_F(QualityRunTest, FewerBitsAreFartherFromTheExactModel) {
  const auto result = Run("kivi-4,kivi-2,int8,kivi-2:sinks=0");
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->rows.size(), 5u);  // fp16 is always there
  const Summary &fp16 = result->rows[0], &kivi4 = result->rows[1], &kivi2 = result->rows[2],
                &int8 = result->rows[3];
  EXPECT_EQ(fp16.codec.name, "fp16");
  EXPECT_EQ(fp16.positions, 3u * 139);
  EXPECT_LT(fp16.kl.value, 1e-5);
  EXPECT_EQ(fp16.ratio.value, 1);
  EXPECT_NEAR(fp16.perplexity.value / result->exact_perplexity.value, 1, 1e-3);
  EXPECT_THAT(fp16.attention_error, Each(0.0));
  EXPECT_GT(int8.kl.value, 2 * fp16.kl.value);
  EXPECT_GT(kivi4.kl.value, 2 * int8.kl.value);
  EXPECT_GT(kivi2.kl.value, 2 * kivi4.kl.value);
  EXPECT_GT(kivi2.kl_max, kivi2.kl_p99);
  EXPECT_GT(kivi2.kl_p99, kivi2.kl.value);
  EXPECT_GT(kivi4.agreement, kivi2.agreement);
  EXPECT_GE(fp16.sure_agreement, kivi2.sure_agreement);
  ASSERT_EQ(kivi2.attention_error.size(), 2u);
  EXPECT_THAT(kivi4.attention_error, Each(Gt(0.0)));
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_GT(kivi2.attention_error[layer], 2 * kivi4.attention_error[layer]);
  }
  EXPECT_EQ(kivi4.greedy_tokens, 11);
  EXPECT_EQ(fp16.greedy_prefix, 11);
  // Along its own answers, not the text, a codec of fewer bits is farther off as well.
  EXPECT_LT(fp16.trajectory_kl.value, 1e-5);
  EXPECT_GT(kivi4.trajectory_kl.value, 2 * fp16.trajectory_kl.value);
  EXPECT_GT(kivi2.trajectory_kl.value, 2 * kivi4.trajectory_kl.value);
  EXPECT_GT(fp16.top5, 0.99);
  EXPECT_GT(kivi4.top5, kivi2.top5);
}

TEST_F(QualityRunTest, GreedyAndProbeCanBeLeftOut) {
  const auto all = Run("kivi-2");
  ASSERT_TRUE(all.ok()) << all.status();
  options_.measure.greedy_tokens = options_.measure.probe_tokens = 0;
  options_.state = (folder_ / "other.jsonl").string();
  const auto bare = Run("kivi-2");
  ASSERT_TRUE(bare.ok()) << bare.status();
  EXPECT_EQ(bare->rows[1].kl.value, all->rows[1].kl.value);
  EXPECT_EQ(bare->rows[1].greedy_tokens, 0);
  EXPECT_EQ(bare->rows[1].trajectory_kl.value, 0);
  EXPECT_TRUE(bare->rows[1].attention_error.empty());
}

// A device whose attention has one kind of blocks less.
class NarrowDevice final : public Device {
 public:
  explicit NarrowDevice(Device& whole) : whole_(whole) {}

  const std::string& name() const override { return whole_.name(); }
  model::Model& model() const override { return whole_.model(); }
  const codec::Quantizer& quantizer() const override { return whole_.quantizer(); }
  std::span<std::byte> slot() const override { return whole_.slot(); }
  absl::Status WaitForPrefill() override { return whole_.WaitForPrefill(); }
  std::string torch_device() const override { return whole_.torch_device(); }
  void* stream() const override { return whole_.stream(); }
  absl::Status Supports(const codec::BlockSpec& spec) const override {
    if (spec.kind == codec::BlockKind::kLut) return absl::UnimplementedError("no tables here");
    return whole_.Supports(spec);
  }
  absl::StatusOr<std::unique_ptr<decode::CacheMemory>> MakeMemory(int sequences) override {
    return whole_.MakeMemory(sequences);
  }
  absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(const decode::CacheStore& store,
                                                                 int sequences) override {
    return whole_.MakeRunner(store, sequences);
  }
  absl::StatusOr<std::unique_ptr<AttentionProbe>> MakeProbe(CacheBatch* exact, CacheBatch& lossy,
                                                            ProbeTrace& trace) override {
    return whole_.MakeProbe(exact, lossy, trace);
  }

 private:
  Device& whole_;
};

TEST_F(QualityRunTest, WhatTheDeviceDoesNotHaveIsReportedAndLeftOut) {
  NarrowDevice narrow(*device_);
  options_.codecs = ParseCodecs("lm3,kivi-2").value();
  const auto result = RunQuality(options_, narrow, text_, [](std::string_view, int, int) {});
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->skipped.size(), 1u);
  EXPECT_EQ(result->skipped[0].codec, "lm3");
  EXPECT_EQ(result->skipped[0].why, "no tables here");
  ASSERT_EQ(result->rows.size(), 2u);
  EXPECT_EQ(result->rows[1].codec.name, "kivi-2");
}

TEST_F(QualityRunTest, TablesOfMoreLevelsAreCloserAndNoWindowIsNeeded) {
  const auto result = Run("fp8,nqkv-nf4,lm3,lm2");
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->rows.size(), 5u);  // fp16 is always there
  EXPECT_EQ(result->rows[2].codec.window, (codec::WindowSpec{0, 0}));
  for (int row = 1; row < 5; ++row) {
    EXPECT_GT(result->rows[row].kl.value, result->rows[row - 1].kl.value)
        << result->rows[row].codec.name;
  }
}

TEST_F(QualityRunTest, BytesAreThoseOfTheFormat) {
  const auto result = Run("kivi-4:recent=64");
  ASSERT_TRUE(result.ok()) << result.status();
  const Summary &fp16 = result->rows[0], &kivi4 = result->rows[1];
  // 2 layers with 1 head of 64 channels: K and V of a token take 2 * 64 * 2 bytes in 16 bits. A
  // block of kivi-4: 2 * 64 * 64 / 2 bytes of codes, scale and min of 2 bytes for each group of 32
  // values.
  constexpr double kRaw = 256, kBlock = 4096 + 2 * 64 * 2 * 4;
  EXPECT_EQ(fp16.wire_bytes_per_token, 2 * kRaw);
  EXPECT_EQ(fp16.resident_bytes_per_token, 2 * kRaw);
  // 200 tokens: 4 sinks, 2 blocks, 68 in the window. 339 in the end: 4 sinks, 4 blocks, 79.
  EXPECT_DOUBLE_EQ(kivi4.wire_bytes_per_token, 2 * (2 * kBlock + (4 + 68) * kRaw) / 200);
  EXPECT_DOUBLE_EQ(kivi4.resident_bytes_per_token, 2 * (4 * kBlock + (4 + 79) * kRaw) / 339);
  EXPECT_EQ(kivi4.block_bits, 5);
}

TEST_F(QualityRunTest, ACodecThatCompressesNothingIsABypass) {
  const auto result = Run("kivi-4:recent=400");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("kivi-4:recent=400"));
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("0 compressed blocks"));
}

TEST_F(QualityRunTest, ARunThatWasStoppedGoesOnAndEndsTheSame) {
  const auto first = Run("kivi-4,kivi-2");
  ASSERT_TRUE(first.ok()) << first.status();
  std::vector<nlohmann::json> rows;
  for (const Summary& row : first->rows) rows.push_back(ToJson(row));

  seen_.clear();
  const auto again = Run("kivi-4,kivi-2");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(seen_.empty()) << "nothing was left to measure";
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(ToJson(again->rows[i]), rows[i]);

  // Stopped within the last record: only the last group's last codec is measured again. Its probe
  // runs the exact model now, where it was shown what kivi-4's had written down.
  std::filesystem::resize_file(options_.state, std::filesystem::file_size(options_.state) - 10);
  const auto resumed = Run("kivi-4,kivi-2");
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(std::count(seen_.begin(), seen_.end(), "kivi-2, attention"),
            options_.measure.probe_tokens);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    nlohmann::json row = ToJson(resumed->rows[i]);
    row["seconds"] = rows[i]["seconds"];
    EXPECT_EQ(row, rows[i]);
  }
}

TEST_F(QualityRunTest, PartsTogetherAreTheWhole) {
  const auto whole = Run("kivi-4,kivi-2,int8");
  ASSERT_TRUE(whole.ok()) << whole.status();
  const std::string merged = (folder_ / "merged.jsonl").string();
  for (const Part& part :
       {Part{.index = 1, .count = 3}, Part{.index = 0, .count = 3}, Part{.index = 2, .count = 3}}) {
    options_.state = (folder_ / ("part" + std::to_string(part.index))).string();
    seen_.clear();
    const absl::Status measured =
        MeasureQualityPart(options_, part, *device_, text_,
                           [this](std::string_view what, int, int) { seen_.emplace_back(what); });
    ASSERT_TRUE(measured.ok()) << measured;
    // fp16, kivi-4, kivi-2, int8: the first part has two of them.
    const auto names = [&](const std::string& codec) {
      return std::any_of(seen_.begin(), seen_.end(),
                         [&](const std::string& what) { return what.starts_with(codec + ","); });
    };
    EXPECT_EQ(names("fp16"), part.index == 0);
    EXPECT_EQ(names("kivi-4"), part.index == 1);
    EXPECT_EQ(names("kivi-2"), part.index == 2);
    EXPECT_EQ(names("int8"), part.index == 0);
    std::ifstream lines(options_.state);
    std::string line;
    std::getline(lines, line);  // of the run
    std::ofstream all(merged, std::ios::app);
    if (part.index == 1) all << line << '\n';
    while (std::getline(lines, line)) all << line << '\n';
  }
  options_.state = merged;
  seen_.clear();
  const auto summed = Run("kivi-4,kivi-2,int8");
  ASSERT_TRUE(summed.ok()) << summed.status();
  EXPECT_THAT(seen_, ElementsAre()) << "nothing was left to measure";
  ASSERT_EQ(summed->rows.size(), whole->rows.size());
  for (std::size_t i = 0; i < whole->rows.size(); ++i) {
    EXPECT_EQ(summed->rows[i].codec.name, whole->rows[i].codec.name);
    EXPECT_EQ(summed->rows[i].kl.value, whole->rows[i].kl.value);
    EXPECT_EQ(summed->rows[i].ratio.high, whole->rows[i].ratio.high);
    EXPECT_EQ(summed->rows[i].trajectory_kl.value, whole->rows[i].trajectory_kl.value);
  }
}

TEST(PartTest, IsANumberOfHowMany) {
  const auto part = ParsePart("4/5");
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_TRUE(part->Has(4));
  EXPECT_TRUE(part->Has(9));
  EXPECT_FALSE(part->Has(5));
  for (const char* bad : {"", "1", "5/5", "-1/5", "0/0", "1/2/3", "a/b", "1/"}) {
    EXPECT_EQ(ParsePart(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(QualityRunTest, TheBatchDoesNotChangeTheNumbers) {
  const auto two = Run("kivi-2");
  ASSERT_TRUE(two.ok()) << two.status();
  options_.batch = 3;
  options_.state = (folder_ / "other.jsonl").string();
  const auto three = Run("kivi-2");
  ASSERT_TRUE(three.ok()) << three.status();
  EXPECT_NEAR(three->rows[1].kl.value / two->rows[1].kl.value, 1, 1e-4);
}

TEST_F(QualityRunTest, ACodecIsAskedForTheKeysThatTheExactModelFinds) {
  const ByteTokenizer tokenizer(' ');  // 96 tokens: what can be printed
  // What the model says anyway is the key, but for the last one.
  std::vector<Passkey> passkeys;
  for (std::size_t i = 0; i < 2 * kPasskeyDepths.size(); ++i) {
    Passkey& passkey = passkeys.emplace_back();
    passkey.depth = i % kPasskeyDepths.size();
    passkey.prompt.assign(text_.tokens.begin() + 200 * i, text_.tokens.begin() + 200 * (i + 1));
    const auto prompt = PrefillPrompt(device_->model(), passkey.prompt, codec::Raw16::kFp16, 210);
    ASSERT_TRUE(prompt.ok()) << prompt.status();
    const auto answer = ContinueGreedily(*prompt->session, passkey.prompt, 10).value();
    for (const std::int32_t token : answer) {
      passkey.key += tokenizer.TokenBytes(token).value();
    }
  }
  passkeys.back().key = "not in 96 letters";
  const auto codecs = ParseCodecs("fp16,bf16,kivi-2:recent=0,sinks=0").value();
  const auto result = RunPasskeys({.device = *device_,
                                   .tokenizer = tokenizer,
                                   .codecs = codecs,
                                   .passkeys = passkeys,
                                   .batch = 3},
                                  [](std::string_view, int, int) {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->per_depth, 2);
  EXPECT_THAT(result->exact.found, ElementsAre(2, 2, 2, 2, 1));
  EXPECT_EQ(result->codecs[0].found, result->exact.found);
  EXPECT_EQ(result->codecs[1].codec, "bf16");
  const auto& lossy = result->codecs[2].found;
  EXPECT_LT(std::accumulate(lossy.begin(), lossy.end(), 0), 9);
}

TEST_F(QualityRunTest, WrongSizesAreRefusedByName) {
  const auto refused = [&](MeasureOptions measure) {
    options_.measure = measure;
    return std::string(Run("kivi-4").status().message());
  };
  const MeasureOptions good = options_.measure;
  MeasureOptions bad = good;
  bad.prompt_tokens = 1023;
  EXPECT_THAT(refused(bad), HasSubstr("prompt_tokens is 1023"));
  bad = good;
  bad.decode_tokens = 825;
  EXPECT_THAT(refused(bad), HasSubstr("decode_tokens is 825, allowed are 2 to 824"));
  bad = good;
  bad.greedy_tokens = 1;
  EXPECT_THAT(refused(bad), HasSubstr("greedy_tokens is 1"));
  bad = good;
  bad.probe_tokens = 140;
  EXPECT_THAT(refused(bad), HasSubstr("probe_tokens is 140"));
  options_.passages = 9;
  EXPECT_THAT(refused(good), HasSubstr("enough for 8"));
}

}  // namespace
}  // namespace kvferry::bench
