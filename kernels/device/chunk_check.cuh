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

// A residue after which `units` times 16 bytes follow, the same in all lanes.
__device__ __forceinline__ std::uint32_t place(const CheckTables* tables, std::uint32_t residue,
                                               std::uint32_t units, int lane) {
  for (int digit = 0; units != 0; ++digit, units >>= 4) {
    if ((units & 15u) == 0) continue;
    const std::uint32_t mask = __ldg(&tables->place[digit][units & 15u][lane]);
    residue = __ballot_sync(kAllLanes, (__popc(residue & mask) & 1) != 0);
  }
  return residue;
}

// Adds what the warps of a CTA have summed up, after which `units` units follow, to a chunk's word.
template <int kWarps>
__device__ __forceinline__ void add_residues(const CheckTables* tables, std::uint32_t residue,
                                             std::uint32_t units, std::uint32_t* chunk) {
  __shared__ std::uint32_t sums[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) sums[warp] = residue;
  __syncthreads();
  if (warp != 0) return;
  std::uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum ^= sums[i];
  sum = place(tables, sum, units, lane);
  if (lane == 0) atomicXor(chunk, sum);
}

// Bit counts of a run of up to kCheckRunSlabs slabs.
struct RunCheck {
  int count[2][4] = {};

  // 16 bytes per lane of the slab that `e` slabs of the run follow; zeros before a message begins
  // and after it ends change nothing.
  __device__ __forceinline__ void add(const CheckTables* tables, int e, int lane,
                                      const uint4& bytes) {
    const auto* a = reinterpret_cast<const uint4*>(&tables->slab[e][0][0][lane]);
    bit_mma(count[0], __ldg(a), bytes.x, bytes.y);
    bit_mma(count[1], __ldg(a + 32), bytes.x, bytes.y);
    bit_mma(count[0], __ldg(a + 64), bytes.z, bytes.w);
    bit_mma(count[1], __ldg(a + 96), bytes.z, bytes.w);
  }

  // The run's residue when `units` times 16 bytes follow it, the same in all lanes.
  __device__ __forceinline__ std::uint32_t residue(const CheckTables* tables, std::uint32_t units,
                                                   int lane) const {
    const auto* fold = reinterpret_cast<const uint4*>(&tables->fold[0][lane]);
    const uint4 low = __ldg(fold), high = __ldg(fold + 32);
    const std::uint32_t masks[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      bits ^= __ballot_sync(kAllLanes, (count[i / 4][i % 4] & 1) != 0) & masks[i];
    }
    return place(tables, __ballot_sync(kAllLanes, (__popc(bits) & 1) != 0), units, lane);
  }
};

}  // namespace kvferry::kernels
