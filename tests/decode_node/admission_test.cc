#include "decode_node/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace kvferry::decode {
namespace {

using ::testing::HasSubstr;

constexpr AdmissionLimits kLimits = {.window = {.sinks = 4, .recent = 64},
                                     .max_context_tokens = 8192,
                                     .rows = 100,
                                     .max_sequences = 3,
                                     .credits_per_transfer = 4};
constexpr Demand kDemand = {.prompt_tokens = 1000, .max_new_tokens = 200};  // 17 rows

Usage Free() {
  return {.free_rows = 100, .free_credits = 32, .held = {}, .step_time = absl::Milliseconds(10)};
}

TEST(AdmissionTest, GrantsRowsForPromptAndGrowth) {
  const Admission admission = Admit(kLimits, kDemand, Free());
  ASSERT_TRUE(admission.status.ok());
  EXPECT_EQ(admission.rows, (1000u + 199 - 4 - 64) / 64);
  EXPECT_EQ(admission.credits, 4u);
}

TEST(AdmissionTest, RefusesForEverWhatNeverFits) {
  const auto message = [](const Demand& demand) {
    const Admission admission = Admit(kLimits, demand, Free());
    EXPECT_TRUE(absl::IsInvalidArgument(admission.status));
    return std::string(admission.status.message());
  };
  EXPECT_THAT(message({0, 1}), HasSubstr("prompt_tokens: 0"));
  EXPECT_THAT(message({1, 0}), HasSubstr("max_new_tokens: 0"));
  EXPECT_THAT(message({8193, 1}), HasSubstr("the context holds 8192"));
  EXPECT_THAT(message({8000, 193}), HasSubstr("holds 192 more"));
  EXPECT_THAT(message({8000, std::numeric_limits<std::uint32_t>::max()}), HasSubstr("192 more"));
  EXPECT_THAT(message({std::numeric_limits<std::uint32_t>::max(), 5}), HasSubstr("8192"));
  EXPECT_THAT(message({8000, 192}), HasSubstr("the whole pool has 100"));
}

TEST(AdmissionTest, ExactlyTheContextFits) {
  AdmissionLimits limits = kLimits;
  limits.rows = 1000;
  Usage usage = Free();
  usage.free_rows = 1000;
  EXPECT_TRUE(Admit(limits, {8000, 192}, usage).status.ok());
}

TEST(AdmissionTest, TheRetryHintIsWhenEnoughRowsWillBeBack) {
  const std::vector<HeldSequence> held = {{.rows = 60, .remaining_tokens = 300},
                                          {.rows = 10, .remaining_tokens = 20}};
  Usage usage = Free();
  usage.held = held;
  usage.free_rows = 8;
  Admission admission = Admit(kLimits, kDemand, usage);  // 8 + 10 rows after 20 steps
  EXPECT_TRUE(absl::IsResourceExhausted(admission.status));
  EXPECT_EQ(admission.retry_after, absl::Milliseconds(200));
  usage.free_rows = 2;  // only the long one gives enough
  EXPECT_EQ(Admit(kLimits, kDemand, usage).retry_after, absl::Seconds(3));
  usage.step_time = absl::Hours(1);
  EXPECT_EQ(Admit(kLimits, kDemand, usage).retry_after, absl::Seconds(10));
  usage.step_time = absl::ZeroDuration();
  EXPECT_EQ(Admit(kLimits, kDemand, usage).retry_after, absl::Milliseconds(50));
}

TEST(AdmissionTest, SequencesAreCounted) {
  const std::vector<HeldSequence> held(3, {.rows = 1, .remaining_tokens = 50});
  Usage usage = Free();
  usage.held = held;
  const Admission admission = Admit(kLimits, kDemand, usage);
  EXPECT_TRUE(absl::IsResourceExhausted(admission.status));
  EXPECT_THAT(std::string(admission.status.message()), HasSubstr("all 3 sequences"));
  EXPECT_EQ(admission.retry_after, absl::Milliseconds(500));
}

TEST(AdmissionTest, LandingSlotsAreShared) {
  Usage usage = Free();
  std::uint32_t transfers = 0;
  for (usage.free_credits = 32;; ++transfers) {
    const Admission admission = Admit(kLimits, kDemand, usage);
    if (!admission.status.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(admission.status));
      EXPECT_GT(admission.retry_after, absl::ZeroDuration());
      break;
    }
    EXPECT_GE(admission.credits, kMinCredits);
    EXPECT_LE(admission.credits, kLimits.credits_per_transfer);
    ASSERT_LE(admission.credits, usage.free_credits);
    usage.free_credits -= admission.credits;
  }
  EXPECT_GE(transfers, 10u);
}

}  // namespace
}  // namespace kvferry::decode
