#include "kernels/chunk_check.h"

#include <utility>

#include "common/status_macros.h"

namespace kvferry::kernels {
namespace {

// Polynomials over GF(2) modulo CRC32C's, bits reversed: bit 31 is the coefficient of x^0.
constexpr std::uint32_t kOne = 0x80000000u;
constexpr std::uint32_t kPolynomial = 0x82f63b78u;
// x has this order: the polynomial is (x + 1) times a primitive one of degree 31.
constexpr std::uint64_t kOrder = 0x7fffffffu;

constexpr std::uint32_t TimesX(std::uint32_t a) {
  return (a >> 1) ^ ((a & 1u) != 0 ? kPolynomial : 0);
}

constexpr std::uint32_t Multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = TimesX(b);
  }
  return product;
}

constexpr std::uint32_t PowerOfX(std::uint64_t n) {
  std::uint32_t power = kOne, square = kOne >> 1;
  for (n %= kOrder; n != 0; n >>= 1) {
    if ((n & 1u) != 0) power = Multiply(power, square);
    square = Multiply(square, square);
  }
  return power;
}
static_assert(PowerOfX(kOrder) == kOne && PowerOfX(1) == kOne >> 1);
static_assert(Multiply(PowerOfX(kOrder - 40), PowerOfX(40)) == kOne);

constexpr int kColumnBits = 512;  // 64 bytes of four lanes
constexpr int kColumns = 8;

void FillSlabs(CheckTables& tables) {
  for (int half = 0; half < 2; ++half) {
    // Bit t of a column stands for x^(32 + kColumnBits - 1 - t): backwards from the end of the run.
    std::uint32_t power = PowerOfX(32 + half * (kCheckSlabBytes / 2) * 8);
    for (int e = 0; e < kCheckRunSlabs; ++e) {
      for (int t = kColumnBits - 1; t >= 0; --t, power = TimesX(power)) {
        const int j = t / 128, step = t / 64 % 2, k_half = t / 32 % 2, bit = t % 32;
        for (int row = 0; row < 32; ++row) {
          if ((power >> row & 1u) == 0) continue;
          const int m = row / 16, row_half = row / 8 % 2, lane = row % 8 * 4 + j;
          tables.slab[half][e][step][m][lane].word[row_half + 2 * k_half] |= 1u << bit;
        }
      }
      power = Multiply(power, PowerOfX(std::uint64_t{kColumnBits} * (kColumns - 1)));
    }
  }
}

void FillFold(CheckTables& tables) {
  for (int ballot = 0; ballot < 8; ++ballot) {
    for (int lane = 0; lane < 32; ++lane) {
      const int row = ballot / 4 * 16 + ballot / 2 % 2 * 8 + lane / 4;
      const int column = lane % 4 * 2 + ballot % 2;
      const std::uint32_t value =
          Multiply(1u << row, PowerOfX(std::uint64_t{kColumnBits} * (kColumns - 1 - column)));
      for (int i = 0; i < 32; ++i) {
        tables.fold[ballot / 4][i].word[ballot % 4] |= (value >> i & 1u) << lane;
      }
    }
  }
}

void FillPlace(CheckTables& tables) {
  for (int digit = 0; digit < kCheckDigits; ++digit) {
    for (int value = 0; value < 16; ++value) {
      const std::uint64_t units = std::uint64_t(value) << (4 * digit);
      const std::uint32_t factor = PowerOfX(units * kCheckUnitBytes * 8);
      for (int bit = 0; bit < 32; ++bit) {
        const std::uint32_t product = Multiply(1u << bit, factor);
        for (int i = 0; i < 32; ++i) tables.place[digit][value][i] |= (product >> i & 1u) << bit;
      }
    }
  }
}

}  // namespace

std::unique_ptr<CheckTables> MakeCheckTables() {
  auto tables = std::make_unique<CheckTables>();
  FillSlabs(*tables);
  FillFold(*tables);
  FillPlace(*tables);
  return tables;
}

absl::StatusOr<DeviceCheckTables> DeviceCheckTables::Create(Stream& stream) {
  KVF_ASSIGN_OR_RETURN(DeviceBuffer memory, DeviceBuffer::Allocate(sizeof(CheckTables)));
  const std::unique_ptr<CheckTables> tables = MakeCheckTables();
  KVF_RETURN_IF_ERROR(CopyAsync(memory.data(), tables.get(), sizeof(CheckTables), stream));
  KVF_RETURN_IF_ERROR(stream.Synchronize());
  return DeviceCheckTables(std::move(memory));
}

std::uint32_t FinishChunkCheck(std::uint32_t residue, std::size_t bytes) {
  const std::uint64_t padding_bits = (kCheckUnitBytes - bytes % kCheckUnitBytes) % 16 * 8;
  const std::uint32_t start = Multiply(0xffffffffu, PowerOfX(std::uint64_t{bytes} * 8));
  return ~(start ^ Multiply(residue, PowerOfX(kOrder - padding_bits)));
}

}  // namespace kvferry::kernels
