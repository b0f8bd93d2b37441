#pragma once

#include <cstdint>

#include "kernels/device/chunk_check.cuh"

namespace kvferry::kernels {

// Codes that a warp has in its registers as they lie in the block: a slab of 512 bytes, 16 of each
// lane. They go to the page at once, without a detour through shared memory.
struct CodeSlabs {
  std::byte* out;             // of the first one, in the page
  const CheckTables* tables;  // null: no residue is wanted
  int count;                  // of the side
  int rest_bytes;             // of the side, after them: a multiple of half a slab

  __device__ __forceinline__ void put(int slab, const uint4& piece, RunCheck& check) const {
    const int lane = threadIdx.x % 32;
    __stcs(reinterpret_cast<uint4*>(out + kCheckSlabBytes * slab) + lane, piece);
    if (tables == nullptr) return;
    const int halves = 2 * (count - 1 - slab) + rest_bytes / (kCheckSlabBytes / 2);
    SlabMatrices matrices;
    matrices.load(tables, halves % 2, halves / 2, lane);
    check.add(matrices, piece);
  }
};

// What is left of a side whose codes have been put: `rest`, in shared memory, and the residue.
// Called by all threads of a CTA of kWarps warps; contains a __syncthreads(), after which `rest` is
// read. after_units: of what follows the side.
template <int kWarps>
__device__ __forceinline__ void finish_codes(const CodeSlabs& codes, RunCheck& check,
                                             const std::byte* rest, std::uint32_t after_units,
                                             std::uint32_t* residue) {
  __shared__ std::uint32_t parities[kWarps][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  PlaceMasks far;
  FoldMasks fold;
  SlabMatrices matrices;
  if (codes.tables != nullptr) {
    if (warp != 0) {
      parities[warp][lane] = check.parities();
    } else {
      far.load(codes.tables, after_units, lane);
      fold.load(codes.tables, lane);
      matrices.load(codes.tables, 0, 0, lane);
    }
  }
  __syncthreads();
  if (warp != 0) return;
  std::byte* out = codes.out + kCheckSlabBytes * codes.count;
  for (int e = 0; kCheckSlabBytes * e < codes.rest_bytes; ++e) {
    const int offset = codes.rest_bytes - kCheckSlabBytes * (e + 1) + 16 * lane;
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (offset >= 0) {
      piece = *reinterpret_cast<const uint4*>(rest + offset);
      __stcs(reinterpret_cast<uint4*>(out + offset), piece);
    }
    if (codes.tables == nullptr) continue;
    if (e != 0) matrices.load(codes.tables, 0, e, lane);
    check.add(matrices, piece);
  }
  if (codes.tables == nullptr) return;
  std::uint32_t sum = check.parities();
#pragma unroll
  for (int i = 1; i < kWarps; ++i) sum ^= parities[i][lane];
  sum = far.place(fold.residue(sum));
  if (lane == 0) atomicXor(residue, sum);
}

// Writes the `bytes` bytes of a block (a multiple of 16) to `out`, all warps of the CTA together,
// and adds them to the residue of their chunk, which `after_units` units of 16 bytes follow.
//   load(offset): the 16 bytes at `offset` of the block. tables null: no residue is wanted.
// Runs are counted from the end of the block, so that a part of a slab begins with zeros.
template <int kWarps, class Load>
__device__ __forceinline__ void write_block(Load load, int bytes, std::byte* out,
                                            const CheckTables* tables, std::uint32_t after_units,
                                            std::uint32_t* residue) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slabs = (bytes + kCheckSlabBytes - 1) / kCheckSlabBytes;
  const int run_slabs = min((slabs + kWarps - 1) / kWarps, kCheckRunSlabs);
  std::uint32_t sum = 0;
  for (int begin = warp * run_slabs; begin < slabs; begin += kWarps * run_slabs) {
    RunCheck check;
    for (int e = 0; e < run_slabs; ++e) {
      const int offset = bytes - kCheckSlabBytes * (begin + e + 1) + 16 * lane;
      uint4 piece = make_uint4(0, 0, 0, 0);
      if (offset >= 0) {
        piece = load(offset);
        __stcs(reinterpret_cast<uint4*>(out + offset), piece);
      }
      if (tables == nullptr) continue;
      SlabMatrices matrices;
      matrices.load(tables, 0, e, lane);
      check.add(matrices, piece);
    }
    if (tables != nullptr) {
      sum ^= check.residue(tables, begin * (kCheckSlabBytes / kCheckUnitBytes), lane);
    }
  }
  if (tables != nullptr) add_residues<kWarps>(tables, sum, after_units, residue);
}

}  // namespace kvferry::kernels
