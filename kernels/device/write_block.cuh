#pragma once

#include <cstdint>

#include "kernels/device/chunk_check.cuh"

namespace kvferry::kernels {

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
      if (tables != nullptr) check.add(tables, e, lane, piece);
    }
    if (tables != nullptr) {
      sum ^= check.residue(tables, begin * (kCheckSlabBytes / kCheckUnitBytes), lane);
    }
  }
  if (tables != nullptr) add_residues<kWarps>(tables, sum, after_units, residue);
}

}  // namespace kvferry::kernels
