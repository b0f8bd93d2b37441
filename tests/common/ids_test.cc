#include "common/ids.h"

#include "gtest/gtest.h"

namespace kvferry {
namespace {

TEST(TransferId, RoundTripsAndRefusesWrongLengths) {
  const TransferId id = TransferId::Random();
  EXPECT_EQ(TransferId::FromHex(id.ToHex()).value(), id);
  EXPECT_EQ(TransferId::FromBytes(id.ToBytes()).value(), id);
  EXPECT_NE(TransferId::Random(), id);
  EXPECT_FALSE(TransferId::FromHex("abc").ok());
  EXPECT_FALSE(TransferId::FromHex(std::string(32, 'g')).ok());
  EXPECT_FALSE(TransferId::FromBytes("short").ok());
  EXPECT_NE(RandomId64(), 0u);
}

}  // namespace
}  // namespace kvferry
