#include "common/crc32c.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace kvferry {
namespace {

std::uint32_t Of(const std::string& text) {
  return Crc32c(std::as_bytes(std::span(text.data(), text.size())));
}

// RFC 3720, appendix B.4, and the check value of the polynomial's catalogue entry.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(Of(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Of(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (int i = 0; i < 32; ++i) ascending += static_cast<char>(i);
  EXPECT_EQ(Of(ascending), 0x46dd794eu);
  EXPECT_EQ(Of("123456789"), 0xe3069283u);
  EXPECT_EQ(Of(""), 0u);
}

TEST(Crc32c, ContinuesFromWhatCameBefore) {
  std::vector<std::byte> data(1000);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 37);
  const std::span<const std::byte> all(data);
  for (const std::size_t cut : {std::size_t{0}, std::size_t{1}, std::size_t{500}, data.size()}) {
    EXPECT_EQ(Crc32c(all.subspan(cut), Crc32c(all.first(cut))), Crc32c(all));
  }
}

}  // namespace
}  // namespace kvferry
