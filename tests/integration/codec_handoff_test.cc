// Codecs that no other test takes through three processes, on CPUs.
#include "tests/integration/codec_handoff_suite.h"

namespace kvferry::testing {
namespace {

INSTANTIATE_TEST_SUITE_P(Cpu, CodecHandoffTest,
                         ::testing::ValuesIn(HandoffCases(
                             [] { return HandoffDevices(); },
                             {"fp16", "bf16", "anf4", "kivi-2", "cq-4c8b", "cq-8c10b"}, "")),
                         HandoffCaseName);

// Of two prefill workers one has the codebooks. By load alone the other would get every second
// request.
TEST(CodebooksHandoffTest, OnlyThePrefillWorkerThatHasThemGetsRequests) {
  auto started = CodecHandoff::Start(HandoffDevices());
  ASSERT_TRUE(started.ok()) << started.status();
  CodecHandoff& handoff = **started;
  const absl::Status plain = handoff.StartPlainPrefill();
  ASSERT_TRUE(plain.ok()) << plain;
  const std::string setting = handoff.SettingOf("cq-4c8b");
  for (const std::string& codec : {setting, setting + ",recent=64"}) {
    SCOPED_TRACE(codec);
    const absl::Status decode = handoff.StartDecode(codec);
    ASSERT_TRUE(decode.ok()) << decode << "\n" << handoff.DecodeLog();
    for (int i = 0; i < 4; ++i) {
      const Answer answer = handoff.Serve();
      ASSERT_TRUE(answer.status.ok()) << answer.status << "\n" << handoff.DecodeLog();
      EXPECT_EQ(answer.finished.prefill_worker(), CodecHandoff::kFirstPrefill);
      EXPECT_EQ(answer.finished.attempts(), 1u);
    }
    const absl::Status stopped = handoff.StopDecode();
    ASSERT_TRUE(stopped.ok()) << stopped;
  }
}

}  // namespace
}  // namespace kvferry::testing
