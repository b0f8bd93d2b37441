#include "kernels/chunk_check.h"

#include <bit>
#include <cstring>
#include <random>
#include <vector>

#include "common/crc32c.h"
#include "gtest/gtest.h"

// The matrices, with the tensor cores' part done by hand: needs no GPU.
namespace kvferry::kernels {
namespace {

int Parity(std::uint32_t x) { return std::popcount(x) % 2; }

// Word `index` of the padded message's slab that ends `slabs_after` slabs before its end.
std::uint32_t WordAt(const std::vector<std::byte>& padded, std::size_t slabs_after, int index) {
  const auto begin = static_cast<std::ptrdiff_t>(padded.size()) -
                     kCheckSlabBytes * static_cast<std::ptrdiff_t>(slabs_after + 1) + 4 * index;
  if (begin < 0) return 0;
  std::uint32_t word;
  std::memcpy(&word, padded.data() + begin, sizeof word);
  return word;
}

// As RunCheck of kernels/device does it, of the run that `slabs_after` slabs follow, and `half`
// halves of one.
std::uint32_t RunResidue(const CheckTables& tables, const std::vector<std::byte>& padded,
                         std::size_t slabs_after, int half = 0) {
  std::uint32_t ballots[8] = {};
  for (int e = 0; e < kCheckRunSlabs; ++e) {
    for (int row = 0; row < 32; ++row) {
      for (int column = 0; column < 8; ++column) {
        int parity = 0;
        for (int j = 0; j < 4; ++j) {
          for (int i = 0; i < 4; ++i) {
            const CheckWords& a = tables.slab[half][e][i / 2][row / 16][row % 8 * 4 + j];
            parity ^= Parity(a.word[row / 8 % 2 + 2 * (i % 2)] &
                             WordAt(padded, slabs_after + e, (4 * column + j) * 4 + i));
          }
        }
        ballots[row / 8 * 2 + column % 2] ^= std::uint32_t(parity) << (row % 8 * 4 + column / 2);
      }
    }
  }
  std::uint32_t value = 0;
  for (int lane = 0; lane < 32; ++lane) {
    std::uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits ^= ballots[i] & tables.fold[i / 4][lane].word[i % 4];
    value |= std::uint32_t(Parity(bits)) << lane;
  }
  std::size_t units = slabs_after * (kCheckSlabBytes / kCheckUnitBytes);
  for (int digit = 0; units != 0; ++digit, units >>= 4) {
    std::uint32_t moved = 0;
    for (int lane = 0; lane < 32; ++lane) {
      moved |= std::uint32_t(Parity(value & tables.place[digit][units & 15][lane])) << lane;
    }
    value = moved;
  }
  return value;
}

TEST(ChunkCheckTest, ResiduesMakeCrc32cOfAnySize) {
  const std::unique_ptr<CheckTables> tables = MakeCheckTables();
  std::mt19937 random(1);
  for (const std::size_t bytes : {1, 7, 15, 16, 17, 128, 511, 512, 513, 4095, 4096, 4864, 70001}) {
    std::vector<std::byte> message(bytes);
    for (std::byte& byte : message) byte = static_cast<std::byte>(random());
    std::vector<std::byte> padded = message;
    padded.resize((bytes + kCheckUnitBytes - 1) / kCheckUnitBytes * kCheckUnitBytes);
    std::uint32_t residue = 0;
    for (std::size_t slab = 0; slab * kCheckSlabBytes < padded.size(); slab += kCheckRunSlabs) {
      residue ^= RunResidue(*tables, padded, slab);
    }
    EXPECT_EQ(FinishChunkCheck(residue, bytes), Crc32c(message)) << bytes;
  }
}

TEST(ChunkCheckTest, HalfASlabMayFollowARun) {
  const std::unique_ptr<CheckTables> tables = MakeCheckTables();
  std::mt19937 random(2);
  for (const int slabs : {1, 4, kCheckRunSlabs}) {
    std::vector<std::byte> message(kCheckSlabBytes * slabs + kCheckSlabBytes / 2);
    for (std::byte& byte : message) byte = static_cast<std::byte>(random());
    const auto cut = message.begin() + kCheckSlabBytes * slabs;
    const std::uint32_t residue = RunResidue(*tables, {message.begin(), cut}, 0, 1) ^
                                  RunResidue(*tables, {cut, message.end()}, 0);
    EXPECT_EQ(FinishChunkCheck(residue, message.size()), Crc32c(message)) << slabs;
  }
}

TEST(ChunkCheckTest, NothingHasTheCrcOfNothing) { EXPECT_EQ(FinishChunkCheck(0, 0), Crc32c({})); }

}  // namespace
}  // namespace kvferry::kernels
