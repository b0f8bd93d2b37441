#include "router/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace kvferry::router {
namespace {

using ::testing::HasSubstr;

TEST(ConfigTest, FillsDefaults) {
  v1::RouterConfig config;
  config.mutable_model()->set_path("models/a.gguf");
  ASSERT_TRUE(CompleteConfig(config).ok());
  EXPECT_EQ(config.name(), "router");
  EXPECT_EQ(config.listen_address(), "127.0.0.1:7300");
  EXPECT_EQ(config.model().name(), "a");
  EXPECT_EQ(config.report_interval().nanos(), 250'000'000);
  EXPECT_EQ(config.silence_limit().seconds(), 1);
  EXPECT_EQ(config.stall_limit().seconds(), 20);
  EXPECT_EQ(config.queue_limit().seconds(), 60);
  EXPECT_EQ(config.max_queued_requests(), 1024u);
  EXPECT_EQ(config.max_attempts(), 8u);
  EXPECT_EQ(config.max_message_bytes(), 4u << 20);
  const v1::RouterConfig once = config;
  ASSERT_TRUE(CompleteConfig(config).ok());
  EXPECT_EQ(once.SerializeAsString(), config.SerializeAsString());
}

TEST(ConfigTest, NamesWhatIsWrong) {
  struct Case {
    std::function<void(v1::RouterConfig&)> spoil;
    const char* path;
  };
  const Case cases[] = {
      {[](auto& c) { c.mutable_model()->clear_path(); }, "model.path"},
      {[](auto& c) { c.mutable_report_interval()->set_seconds(-1); }, "report_interval"},
      {[](auto& c) { c.mutable_report_interval()->set_seconds(60); }, "report_interval"},
      {[](auto& c) { c.mutable_silence_limit()->set_nanos(300'000'000); }, "silence_limit"},
      {[](auto& c) { c.mutable_stall_limit(); }, "stall_limit"},
      {[](auto& c) { c.mutable_queue_limit()->set_seconds(1'000'000); }, "queue_limit"},
      {[](auto& c) { c.set_max_queued_requests(0); }, "max_queued_requests"},
      {[](auto& c) { c.set_max_attempts(0); }, "max_attempts"},
      {[](auto& c) { c.set_max_message_bytes(1); }, "max_message_bytes"},
  };
  for (const Case& c : cases) {
    v1::RouterConfig config;
    config.mutable_model()->set_path("a.gguf");
    c.spoil(config);
    const absl::Status status = CompleteConfig(config);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << c.path;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.path));
  }
}

}  // namespace
}  // namespace kvferry::router
