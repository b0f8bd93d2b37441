#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcodec/open_codec.h"
#include "kvcodec/plan.h"
#include "tests/integration/codec_handoff.h"

// A prompt of several compressed blocks through router, prefill and decode worker, codec by codec:
// the bytes are the formula's and the CPU path's, and every token is one that the CPU path could
// have chosen. For workers on any device: whoever includes this instantiates it.
namespace kvferry::testing {

struct HandoffCase {
  // kUnavailable: this machine has not got them; the tests are skipped.
  std::function<absl::StatusOr<HandoffDevices>()> devices;
  std::string codec;      // as CodecHandoff::SettingOf takes it
  std::string transport;  // of the hand-off; empty: any
};
inline void PrintTo(const HandoffCase& handoff, std::ostream* out) { *out << handoff.codec; }

class CodecHandoffTest : public ::testing::TestWithParam<HandoffCase> {
 protected:
  static void TearDownTestSuite() { handoff_.reset(); }
  void SetUp() override {
    const absl::StatusOr<HandoffDevices> devices = GetParam().devices();
    if (absl::IsUnavailable(devices.status())) GTEST_SKIP() << devices.status().message();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (handoff_ != nullptr) return;
    auto handoff = CodecHandoff::Start(*devices);
    ASSERT_TRUE(handoff.ok()) << handoff.status();
    handoff_ = *std::move(handoff);
  }

  void ExpectWholeAnswer(const Answer& answer, const codec::Codec& codec) {
    ASSERT_TRUE(answer.status.ok()) << answer.status << "\n" << handoff_->DecodeLog();
    EXPECT_TRUE(answer.contiguous);
    EXPECT_EQ(answer.ids.size(), static_cast<std::size_t>(CodecHandoff::kTokens));
    EXPECT_EQ(answer.started.codec(), codec.name);
    EXPECT_EQ(answer.finished.attempts(), 1u);
  }

  void ExpectBytes(const v1::HandoffStats& stats, const codec::Codec& codec,
                   std::size_t cpu_bytes) {
    EXPECT_TRUE(stats.adopted());
    EXPECT_EQ(stats.resent_chunks(), 0u);
    EXPECT_EQ(stats.prompt_tokens(), static_cast<unsigned>(handoff_->prompt_tokens()));
    const absl::StatusOr<std::size_t> bytes =
        codec::HandoffBytes(handoff_->prompt_tokens(), codec, handoff_->geometry());
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(stats.payload_bytes(), *bytes);
    EXPECT_EQ(stats.payload_bytes(), cpu_bytes);
    EXPECT_EQ(stats.raw16_bytes(),
              codec::Raw16HandoffBytes(handoff_->prompt_tokens(), handoff_->geometry()));
    if (!GetParam().transport.empty()) {
      EXPECT_EQ(stats.transport(), GetParam().transport);
    }
  }

  // Equal tokens where CPUs are sure by more than `error`, and elsewhere one that is as good.
  void ExpectLeads(const absl::StatusOr<CodecHandoff::CpuPath>& path, float error,
                   const std::string& by) {
    ASSERT_TRUE(path.ok()) << path.status();
    ASSERT_EQ(path->leads.size(), static_cast<std::size_t>(CodecHandoff::kTokens));
    const auto worst = std::max_element(path->leads.begin(), path->leads.end());
    RecordProperty(by == "exact" ? "largest_lead_by_exact" : "largest_lead",
                   std::to_string(*worst));
    EXPECT_LE(*worst, error) << "token " << worst - path->leads.begin() << " is not what " << by
                             << " gives on CPUs";
  }

  static inline std::unique_ptr<CodecHandoff> handoff_;
};

TEST_P(CodecHandoffTest, ServesWhatItServesOnCpus) {
  const std::string setting = handoff_->SettingOf(GetParam().codec);
  const absl::StatusOr<codec::Codec> codec = codec::OpenCodec(setting);
  ASSERT_TRUE(codec.ok()) << codec.status();
  ASSERT_GE(codec::PlanBlocks(handoff_->prompt_tokens(), codec->window).blocks, 4);
  const absl::Status started = handoff_->StartDecode(setting);
  ASSERT_TRUE(started.ok()) << started << "\n" << handoff_->DecodeLog();
  const absl::StatusOr<std::string> pool = handoff_->CodecOfPool();
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ(*pool, codec->name);

  const Answer answer = handoff_->Serve();
  ASSERT_NO_FATAL_FAILURE(ExpectWholeAnswer(answer, *codec));
  const auto path = handoff_->Follow(*codec, answer.ids);
  ASSERT_TRUE(path.ok()) << path.status();
  ExpectBytes(answer.finished.handoff(), *codec, path->wire_bytes);
  ExpectLeads(path, handoff_->devices().codec_error, codec->name);
  if (codec->name == "fp16") {
    ExpectLeads(handoff_->FollowExactly(answer.ids), handoff_->devices().exact_error, "exact");
  }

  const Answer again = handoff_->Serve();
  ASSERT_NO_FATAL_FAILURE(ExpectWholeAnswer(again, *codec));
  ExpectBytes(again.finished.handoff(), *codec, path->wire_bytes);
  EXPECT_EQ(again.ids, answer.ids) << "the same request twice";

  const absl::Status free = handoff_->AwaitAllFree();
  EXPECT_TRUE(free.ok()) << free;
  const absl::Status stopped = handoff_->StopDecode();
  EXPECT_TRUE(stopped.ok()) << stopped;
}

inline std::vector<HandoffCase> HandoffCases(
    const std::function<absl::StatusOr<HandoffDevices>()>& devices,
    const std::vector<std::string>& codecs, const std::string& transport) {
  std::vector<HandoffCase> cases;
  for (const std::string& codec : codecs) {
    cases.push_back({.devices = devices, .codec = codec, .transport = transport});
  }
  return cases;
}

inline std::string HandoffCaseName(const ::testing::TestParamInfo<HandoffCase>& info) {
  std::string name = info.param.codec;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !absl::ascii_isalnum(c); }, '_');
  return name;
}

}  // namespace kvferry::testing
