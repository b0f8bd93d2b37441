#pragma once

#include <cstdint>

#include "kernels/chunk_check.h"

// The device half of kernels/chunk_check.h. All functions are called by whole warps.
namespace kvferry::kernels {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ void bit_mma(int (&count)[4], const uint4& a, std::uint32_t b0,
                                        std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(count[0]), "+r"(count[1]), "+r"(count[2]), "+r"(count[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Moves residues by a distance in units of 16 bytes, the same in all lanes.
struct PlaceMasks {
  std::uint32_t units;
  std::uint32_t mask[kCheckDigits];  // of the digits that are not zero

  __device__ __forceinline__ void load(const CheckTables* tables, std::uint32_t distance,
                                       int lane) {
    units = distance;
#pragma unroll
    for (int d = 0; d < kCheckDigits; ++d) {
      const std::uint32_t digit = units >> (4 * d) & 15u;
      mask[d] = digit == 0 ? 0 : __ldg(&tables->place[d][digit][lane]);
    }
  }
  // The residue, the same in all lanes.
  __device__ __forceinline__ std::uint32_t place(std::uint32_t residue) const {
#pragma unroll
    for (int d = 0; d < kCheckDigits; ++d) {
      if ((units >> (4 * d) & 15u) == 0) continue;
      residue = __ballot_sync(kAllLanes, (__popc(residue & mask[d]) & 1) != 0);
    }
    return residue;
  }
};

// Makes a residue of the parities of a run.
struct FoldMasks {
  uint4 low, high;

  __device__ __forceinline__ void load(const CheckTables* tables, int lane) {
    const auto* fold = reinterpret_cast<const uint4*>(&tables->fold[0][lane]);
    low = __ldg(fold), high = __ldg(fold + 32);
  }
  // `parities`: RunCheck::parities(), summed up over as many warps as share the run. The residue is
  // the same in all lanes.
  __device__ __forceinline__ std::uint32_t residue(std::uint32_t parities) const {
    const std::uint32_t masks[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t bit = 1u << (8 * (i % 4) + i / 4);
      bits ^= __ballot_sync(kAllLanes, (parities & bit) != 0) & masks[i];
    }
    return __ballot_sync(kAllLanes, (__popc(bits) & 1) != 0);
  }
};

// Adds what the warps of a CTA have summed up, after which `units` units follow, to a chunk's word.
template <int kWarps>
__device__ __forceinline__ void add_residues(const CheckTables* tables, std::uint32_t residue,
                                             std::uint32_t units, std::uint32_t* chunk) {
  __shared__ std::uint32_t sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) sums[warp] = residue;
  PlaceMasks masks;
  if (warp == 0) masks.load(tables, units, lane);
  __syncthreads();
  if (warp != 0) return;
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum ^= sums[i];
  sum = masks.place(sum);
  if (lane == 0) atomicXor(chunk, sum);
}

// The A operands for a slab that `e` slabs and `half` halves of one follow in its run.
struct SlabMatrices {
  uint4 a[4];  // [step][m]

  __device__ __forceinline__ void load(const CheckTables* tables, int half, int e, int lane) {
    const auto* from = reinterpret_cast<const uint4*>(&tables->slab[half][e][0][0][lane]);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = __ldg(from + 32 * i);
  }
};

// Bit counts of a run of up to kCheckRunSlabs slabs.
struct RunCheck {
  int count[2][4] = {};

  // 16 bytes per lane of a slab; zeros before a message begins and after it ends change nothing.
  __device__ __forceinline__ void add(const SlabMatrices& matrices, const uint4& bytes) {
    bit_mma(count[0], matrices.a[0], bytes.x, bytes.y);
    bit_mma(count[1], matrices.a[1], bytes.x, bytes.y);
    bit_mma(count[0], matrices.a[2], bytes.z, bytes.w);
    bit_mma(count[1], matrices.a[3], bytes.z, bytes.w);
  }

  // The counts modulo 2: bit 8 * k + m is that of count[m][k].
  __device__ __forceinline__ std::uint32_t parities() const {
    std::uint32_t bytes[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      bytes[m] = __byte_perm(__byte_perm(count[m][0], count[m][1], 0x0040),
                             __byte_perm(count[m][2], count[m][3], 0x0040), 0x5410) &
                 0x01010101u;
    }
    return bytes[0] | bytes[1] << 1;
  }
  // The run's residue when `units` times 16 bytes follow it, the same in all lanes.
  __device__ __forceinline__ std::uint32_t residue(const CheckTables* tables, std::uint32_t units,
                                                   int lane) const {
    PlaceMasks near;
    near.load(tables, units, lane);
    FoldMasks fold;
    fold.load(tables, lane);
    return near.place(fold.residue(parities()));
  }
};

}  // namespace kvferry::kernels
