#include "router/wire_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "kvferry/v1/inference.pb.h"

namespace kvferry::router {
namespace {

using ::testing::HasSubstr;

absl::Status Explain(const std::string& bytes) {
  return ExplainUnparsable(*v1::GenerateRequest::descriptor(), bytes);
}

// The bytes of a message whose field `field` has `value`, as no serializer would write them.
std::string Field(int number, const std::string& value) {
  std::string bytes;
  bytes.push_back(static_cast<char>(number << 3 | 2));
  bytes.push_back(static_cast<char>(value.size()));
  return bytes + value;
}

TEST(WireTextTest, NamesFieldAndOffset) {
  const absl::Status status = Explain(Field(1, "ok") + Field(8, "fine") + Field(8, "ab\xff"));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("stop[1]"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("2"));
}

TEST(WireTextTest, LooksIntoMessages) {
  const std::string message = Field(1, "\xc0");
  const absl::Status status = Explain(Field(4, Field(1, Field(1, "user")) + Field(1, message)));
  EXPECT_THAT(std::string(status.message()), HasSubstr("chat.messages[1].role"));
}

TEST(WireTextTest, OtherFaultsAreNamedAsSuch) {
  for (const std::string& bytes : {std::string("\x0a\x7f"), std::string("\x0a"),
                                   std::string("\xff\xff\xff"), Field(1, "fine")}) {
    const absl::Status status = Explain(bytes);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("bytes are no"));
  }
}

TEST(WireTextTest, RandomBytesGiveAnError) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % (i % 2 == 0 ? 256 : 80));
    EXPECT_TRUE(absl::IsInvalidArgument(Explain(bytes)));
  }
}

}  // namespace
}  // namespace kvferry::router
