#include "common/log.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvferry {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

template <typename Write>
std::string Logged(Write write) {
  ::testing::internal::CaptureStderr();
  write();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Log, OneLineWithTheNameTheEventAndItsFields) {
  SetLogName("decode-0");
  const std::string line = Logged([] {
    Log(LogLevel::kWarning, "peer_lost",
        {{"peer", "prefill-1"}, {"rows", 3}, {"why", absl::UnavailableError("gone")}, {"to", ""}});
  });
  EXPECT_THAT(line, EndsWith("decode-0 peer_lost peer=prefill-1 rows=3 "
                             "why=\"UNAVAILABLE: gone\" to=\"\"\n"));
}

// What a peer says about itself ends up in fields.
TEST(Log, AValueCanNeitherForgeALineNorDriveATerminal) {
  const std::string line = Logged([] {
    Log(LogLevel::kError, "refused", {{"name", "a\nb\r\x1b[2J\x7f \"c\" \\"}});
  });
  EXPECT_THAT(line, EndsWith(R"(name="a\nb\x0d\x1b[2J\x7f \"c\" \\")"
                             "\n"));
}

TEST(Log, NothingBelowTheLevelAndOnlyLevelsThatExist) {
  ASSERT_TRUE(SetLogLevel("warning").ok());
  EXPECT_THAT(Logged([] { Log(LogLevel::kInfo, "quiet"); }), IsEmpty());
  EXPECT_THAT(Logged([] { Log(LogLevel::kWarning, "loud"); }), HasSubstr("loud"));
  const absl::Status status = SetLogLevel("verbose");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("debug, info, warning or error"));
  ASSERT_TRUE(SetLogLevel("info").ok());
}

}  // namespace
}  // namespace kvferry
