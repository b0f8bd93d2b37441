#pragma once

#include "kernels/attention_variants.h"
#include "kernels/device/attention_kernel.cuh"
#include "kernels/device/scalar_codes.cuh"

namespace kvferry::kernels {

inline constexpr int kMultiprocessorBytes = 228 * 1024;  // of shared memory, on sm_90
inline constexpr int kReservedBytes = 1024;              // of it, per thread block

template <class Codes, int kWarps, int kStages, int kBlocksPerSm>
AttentionKernel make_kernel() {
  return {
      reinterpret_cast<const void*>(&decode_attention_kernel<Codes, kWarps, kStages, kBlocksPerSm>),
      kWarps, AttentionShared<Codes, kWarps, kStages>::kBytes};
}

template <class Codes>
AttentionVariant make_variant(const codec::BlockSpec& spec) {
  constexpr int kWarps = 4, kStages = 2;
  // Registers allow for so many of a small thread block, and for 16 warps of a large one.
  constexpr int by_registers = Codes::kHeadDim <= 64 ? 5 : Codes::kHeadDim <= 128 ? 4 : 2;
  constexpr int by_memory =
      kMultiprocessorBytes / (AttentionShared<Codes, kWarps, kStages>::kBytes + kReservedBytes);
  constexpr int small = by_memory < 1 ? 1 : by_memory < by_registers ? by_memory : by_registers;
  constexpr auto fits = [](int warps_bytes) {
    return warps_bytes + kReservedBytes <= kMultiprocessorBytes - kReservedBytes;
  };
  constexpr int large =
      Codes::kHeadDim <= 128 && fits(AttentionShared<Codes, 16, kStages>::kBytes)   ? 16
      : Codes::kHeadDim <= 128 && fits(AttentionShared<Codes, 12, kStages>::kBytes) ? 12
      : fits(AttentionShared<Codes, 8, kStages>::kBytes)                            ? 8
                                                                                    : 4;
  return {spec, make_kernel<Codes, kWarps, kStages, small>(),
          make_kernel<Codes, large, kStages, 1>()};
}

template <int kHeadDim, int kKBits, int kVBits, int kKGroup, int kVGroup>
AttentionVariant scalar_variant() {
  return make_variant<ScalarCodes<kHeadDim, kKBits, kVBits, kKGroup, kVGroup>>(
      {.kind = codec::BlockKind::kScalar,
       .head_dim = kHeadDim,
       .k_bits = kKBits,
       .v_bits = kVBits,
       .k_group_tokens = kKGroup,
       .v_group_channels = kVGroup});
}

}  // namespace kvferry::kernels
