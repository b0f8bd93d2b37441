#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"

// CRC32C of a chunk (check_kind 1 of docs/protocol.md) inside the kernels that touch its bytes
// anyway.
//
// Without its initial and final inversion CRC32C is linear over GF(2), so a CRC is a product of a
// bit matrix with the bits of the message, and bits times bits is what mma.sync.m16n8k256.b1 does:
// the parity of its counts is the CRC. A warp takes 512 bytes as they lie in its registers (16 per
// lane), folds the 8 columns of 64 bytes into one residue, and multiplies it by x^(bits that
// follow). Residues of all warps are XORed in any order: the sum is deterministic. The inversions,
// which depend on the length alone, are the host's.
namespace kvferry::kernels {

inline constexpr int kCheckSlabBytes = 512;  // of one warp: 32 lanes x 16 bytes
inline constexpr int kCheckRunSlabs = 20;    // that can share one fold
inline constexpr int kCheckUnitBytes = 16;   // of distances
inline constexpr int kCheckDigits = 6;       // of a distance, base 16
inline constexpr std::size_t kCheckMaxBytes = std::size_t{kCheckUnitBytes} << (4 * kCheckDigits);

// The matrices, in the order in which lanes read them.
struct alignas(16) CheckWords {
  std::uint32_t word[4];
};
struct CheckTables {
  // The A operand of step `s` (words 2s, 2s + 1 of a lane) for output bits [16 * m, 16 * m + 16)
  // when `e` slabs and `half` halves of a slab of the run follow: [half][e][s][m][lane].
  CheckWords slab[2][kCheckRunSlabs][2][2][32];
  // Lane i: which of the 256 bits of eight ballots make bit i of the residue.
  CheckWords fold[2][32];
  // Lane i: which bits of a residue make bit i of it times x^(8 * 16 * value * 16^digit).
  std::uint32_t place[kCheckDigits][16][32];
};

// Computed on the host; 93 KiB. Pure.
std::unique_ptr<CheckTables> MakeCheckTables();

// The tables on the calling thread's device: one per device and process is enough. Immutable.
class DeviceCheckTables {
 public:
  static absl::StatusOr<DeviceCheckTables> Create(Stream& stream);

  const CheckTables* get() const { return memory_.as<const CheckTables>(); }

 private:
  explicit DeviceCheckTables(DeviceBuffer memory) : memory_(std::move(memory)) {}

  DeviceBuffer memory_;
};

// The CRC32C of `bytes` bytes from the residue that a kernel has summed up over them and over zeros
// up to the next multiple of 16.
std::uint32_t FinishChunkCheck(std::uint32_t residue, std::size_t bytes);

}  // namespace kvferry::kernels
