#pragma once

#include "kernels/device/quantize_kernel.cuh"
#include "kernels/quantize_variants.h"

namespace kvferry::kernels {

template <int kHeadDim, int kGroupChannels>
QuantizeVariant ScalarVariant(codec::Raw16 type) {
  return {type == codec::Raw16::kFp16
              ? quantize_scalar_kernel<codec::Raw16::kFp16, kHeadDim, kGroupChannels>
              : quantize_scalar_kernel<codec::Raw16::kBf16, kHeadDim, kGroupChannels>,
          QuantizeShape<kHeadDim>::kThreads, QuantizeShape<kHeadDim>::kCtasPerSm};
}

template <int kHeadDim>
QuantizeVariant FindScalarVariant(codec::Raw16 type, int v_group_channels) {
  if (v_group_channels == 32) return ScalarVariant<kHeadDim, 32>(type);
  if constexpr (kHeadDim % 64 == 0) {
    if (v_group_channels == 64) return ScalarVariant<kHeadDim, 64>(type);
  }
  if constexpr (kHeadDim % 128 == 0) {
    if (v_group_channels == 128) return ScalarVariant<kHeadDim, 128>(type);
  }
  return {};
}

}  // namespace kvferry::kernels
