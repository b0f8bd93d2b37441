#pragma once

#include "kernels/device/quantize_kernel.cuh"
#include "kernels/quantize_variants.h"

namespace kvferry::kernels {

template <int kHeadDim, int kGroupChannels, bool kAnyWidth>
QuantizeVariant ScalarVariant(codec::Raw16 type) {
  using Shape = QuantizeShape<kHeadDim, kGroupChannels>;
  return {type == codec::Raw16::kFp16
              ? quantize_scalar_kernel<codec::Raw16::kFp16, kHeadDim, kGroupChannels, kAnyWidth>
              : quantize_scalar_kernel<codec::Raw16::kBf16, kHeadDim, kGroupChannels, kAnyWidth>,
          Shape::kThreads, 2, Shape::kCtasPerSm};
}
template <int kHeadDim, int kGroupChannels>
QuantizeVariant ScalarVariant(codec::Raw16 type, bool any_width) {
  return any_width ? ScalarVariant<kHeadDim, kGroupChannels, true>(type)
                   : ScalarVariant<kHeadDim, kGroupChannels, false>(type);
}

template <int kHeadDim>
QuantizeVariant FindScalarVariant(codec::Raw16 type, int v_group_channels, bool any_width) {
  if (v_group_channels == 32) return ScalarVariant<kHeadDim, 32>(type, any_width);
  if constexpr (kHeadDim % 64 == 0) {
    if (v_group_channels == 64) return ScalarVariant<kHeadDim, 64>(type, any_width);
  }
  if constexpr (kHeadDim % 128 == 0) {
    if (v_group_channels == 128) return ScalarVariant<kHeadDim, 128>(type, any_width);
  }
  return {};
}

}  // namespace kvferry::kernels
