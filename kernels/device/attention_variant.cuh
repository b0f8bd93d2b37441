#pragma once

#include "kernels/attention_variants.h"
#include "kernels/device/attention_kernel.cuh"

namespace kvferry::kernels {

inline constexpr int kMultiprocessorBytes = 228 * 1024;  // of shared memory, on sm_90
inline constexpr int kReservedBytes = 1024;              // of it, per thread block

template <class Codes, int kWarps, int kStages, int kBlocksPerSm>
AttentionKernel make_kernel() {
  return {
      reinterpret_cast<const void*>(&decode_attention_kernel<Codes, kWarps, kStages, kBlocksPerSm>),
      kWarps, AttentionShared<Codes, kWarps, kStages>::kBytes};
}

// The most warps, of those asked for, whose rings fit into one multiprocessor.
template <class Codes, int kStages, int kWarps, int... kFewer>
constexpr int warps_that_fit() {
  constexpr int bytes = AttentionShared<Codes, kWarps, kStages>::kBytes + kReservedBytes;
  if constexpr (sizeof...(kFewer) == 0 || bytes <= kMultiprocessorBytes) {
    return kWarps;
  } else {
    return warps_that_fit<Codes, kStages, kFewer...>();
  }
}

template <class Codes>
AttentionKernels make_kernels() {
  constexpr int kStages = Codes::kMaxStages;
  // Registers allow for so many small thread blocks, and for so many warps of a large one.
  constexpr int by_registers = Codes::kHeadDim <= 64 ? 5 : Codes::kHeadDim <= 128 ? 4 : 2;
  constexpr int small = warps_that_fit<Codes, kStages, 4, 3, 2, 1>();
  constexpr int by_memory =
      kMultiprocessorBytes / (AttentionShared<Codes, small, kStages>::kBytes + kReservedBytes);
  constexpr int of_small = by_memory < 1 ? 1 : by_memory < by_registers ? by_memory : by_registers;
  constexpr int large = Codes::kHeadDim <= 128
                            ? warps_that_fit<Codes, kStages, 16, 12, 8, 6, 4, small>()
                            : warps_that_fit<Codes, kStages, 8, 6, 4, small>();
  const AttentionKernel one = make_kernel<Codes, large, kStages, 1>();
  if constexpr (Codes::kTableBytes > 0) {  // one per multiprocessor is enough
    return {one, one};
  } else {
    return {make_kernel<Codes, small, kStages, of_small>(), one};
  }
}

template <class Codes>
AttentionVariant make_variant(const codec::BlockSpec& spec) {
  return {spec, make_kernels<Codes>()};
}

}  // namespace kvferry::kernels
