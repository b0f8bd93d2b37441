#include "router/convert.h"

#include "gtest/gtest.h"

namespace kvferry::router {
namespace {

// Decode reports what it adopted and prefill when; the one that comes second must not wipe out the
// other.
TEST(FillHandoff, KeepsThePrefillTimesWhicheverSideReportsLast) {
  v1::HandoffStats committed;
  committed.set_adopted(true);
  committed.set_payload_bytes(4096);
  committed.mutable_prefill_time()->set_seconds(2);
  committed.mutable_exposed_time()->set_nanos(5'000'000);
  v1::HandoffStats adopted;
  adopted.set_adopted(true);
  adopted.set_payload_bytes(4096);
  for (const bool prefill_first : {true, false}) {
    Handoff handoff;
    FillHandoff(prefill_first ? committed : adopted, handoff);
    FillHandoff(prefill_first ? adopted : committed, handoff);
    EXPECT_EQ(handoff.prefill_time, absl::Seconds(2));
    EXPECT_EQ(handoff.exposed_time, absl::Milliseconds(5));
    EXPECT_EQ(handoff.payload_bytes, 4096u);
  }
}

// What the first token tells comes by another stream than what decode tells, and may come later.
TEST(FillHandoff, TheFirstTokensNumbersAreOldNewsOnceAdopted) {
  v1::HandoffStats first_token;
  first_token.set_prompt_tokens(100);
  first_token.set_payload_bytes(512);
  first_token.set_transport("tcp_host");
  first_token.mutable_prefill_time()->set_seconds(2);
  v1::HandoffStats adopted;
  adopted.set_adopted(true);
  adopted.set_prompt_tokens(100);
  adopted.set_payload_bytes(4096);
  adopted.set_transport("tcp_host");
  Handoff handoff;
  FillHandoff(first_token, handoff);
  EXPECT_FALSE(handoff.adopted);
  EXPECT_EQ(handoff.payload_bytes, 512u);
  EXPECT_EQ(handoff.transport, "tcp_host");
  FillHandoff(adopted, handoff);
  FillHandoff(first_token, handoff);
  EXPECT_TRUE(handoff.adopted);
  EXPECT_EQ(handoff.payload_bytes, 4096u);
  EXPECT_EQ(handoff.prefill_time, absl::Seconds(2));
}

TEST(FillEnd, OnlyAnAdoptedHandOffHasAnExposedTime) {
  for (const bool adopted : {false, true}) {
    v1::Finished message;
    FillEnd({.handoff = {.adopted = adopted, .prompt_tokens = 7}}, message);
    EXPECT_EQ(message.handoff().adopted(), adopted);
    EXPECT_EQ(message.handoff().has_exposed_time(), adopted);
    EXPECT_EQ(message.handoff().prompt_tokens(), 7u);
  }
}

}  // namespace
}  // namespace kvferry::router
