#include "router/convert.h"

#include "gtest/gtest.h"

namespace kvferry::router {
namespace {

// Decode reports what it adopted and prefill when; the one that comes second must not wipe out the
// other.
TEST(FillHandoff, KeepsThePrefillTimesWhicheverSideReportsLast) {
  v1::HandoffStats committed;
  committed.set_payload_bytes(4096);
  committed.mutable_prefill_time()->set_seconds(2);
  committed.mutable_exposed_time()->set_nanos(5'000'000);
  v1::HandoffStats adopted;
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

}  // namespace
}  // namespace kvferry::router
