#include "kernels/device/quantize_lut.cuh"
#include "kernels/quantize_variants.h"

namespace kvferry::kernels {
namespace {

using codec::Raw16;

template <int kHeadDim>
QuantizeVariant Lut(Raw16 type) {
  return {type == Raw16::kFp16 ? quantize_lut_kernel<Raw16::kFp16, kHeadDim>
                               : quantize_lut_kernel<Raw16::kBf16, kHeadDim>,
          kBaselineThreads};
}

}  // namespace

QuantizeVariant FindLutVariant(Raw16 type, int head_dim) {
  switch (head_dim) {
    case 64:
      return Lut<64>(type);
    case 96:
      return Lut<96>(type);
    case 128:
      return Lut<128>(type);
    case 256:
      return Lut<256>(type);
    default:
      return {};
  }
}

}  // namespace kvferry::kernels
