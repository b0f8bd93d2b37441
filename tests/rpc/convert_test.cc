#include "rpc/convert.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace kvferry::rpc {
namespace {

google::protobuf::Duration Message(std::int64_t seconds, std::int32_t nanos) {
  google::protobuf::Duration message;
  message.set_seconds(seconds);
  message.set_nanos(nanos);
  return message;
}

TEST(ConvertTest, DurationsGoBothWays) {
  for (const absl::Duration duration :
       {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(1500), absl::Hours(100)}) {
    EXPECT_EQ(ToDuration("d", ToProto(duration)).value(), duration);
  }
  EXPECT_EQ(ToSeconds(Message(3, 250'000'000)), 3.25);
}

TEST(ConvertTest, ABadDurationNamesItsField) {
  for (const auto& message :
       {Message(-1, 0), Message(0, -1), Message(0, 1'000'000'000), Message(315'576'000'001, 0)}) {
    const absl::Status status = ToDuration("lease", message).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().find("lease"), 0u) << status;
  }
}

TEST(ConvertTest, ATransferIdHasSixteenBytes) {
  const std::string bytes = "0123456789abcdef";
  EXPECT_EQ(ToTransferId("id", bytes).value(), TransferId::FromBytes(bytes).value());
  for (const std::size_t size : {0u, 15u}) {
    EXPECT_EQ(ToTransferId("id", bytes.substr(0, size)).status().message(),
              "id: " + std::to_string(size) + " bytes; 16 are needed");
  }
  EXPECT_FALSE(ToTransferId("id", bytes + "0").ok());
}

}  // namespace
}  // namespace kvferry::rpc
