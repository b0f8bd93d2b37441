#include "common/metrics.h"

#include "gtest/gtest.h"

namespace kvferry {
namespace {

TEST(Metrics, TheSameNameAndLabelsGiveTheSameCounter) {
  const auto metrics = Metrics::Create();
  metrics->GetCounter("kvferry_test_events_total", "Events.", {{"kind", "a"}}).Add(2);
  metrics->GetCounter("kvferry_test_events_total", "Events.", {{"kind", "a"}}).Add();
  metrics->GetCounter("kvferry_test_events_total", "Events.", {{"kind", "b"}}).Add(5);
  const auto values = metrics->CounterValues();
  EXPECT_EQ(values.at("kvferry_test_events_total{kind=a}"), 3u);
  EXPECT_EQ(values.at("kvferry_test_events_total{kind=b}"), 5u);
}

TEST(Metrics, APortInUseIsUnavailable) {
  const auto metrics = Metrics::Create();
  EXPECT_TRUE(metrics->Serve("127.0.0.1:0").ok());
  EXPECT_EQ(Metrics::Create()->Serve("127.0.0.1:notaport").code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace kvferry
