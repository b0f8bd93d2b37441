#include "kernels/device/quantize_baselines.cuh"
#include "kernels/quantize_variants.h"

namespace kvferry::kernels {
namespace {

using codec::Raw16;

template <int kHeadDim>
QuantizeVariant Int8(Raw16 type) {
  return {type == Raw16::kFp16 ? quantize_int8_kernel<Raw16::kFp16, kHeadDim>
                               : quantize_int8_kernel<Raw16::kBf16, kHeadDim>,
          kBaselineThreads};
}

template <int kHeadDim>
QuantizeVariant Raw(Raw16 type) {
  return {type == Raw16::kFp16 ? quantize_raw16_kernel<Raw16::kFp16, kHeadDim>
                               : quantize_raw16_kernel<Raw16::kBf16, kHeadDim>,
          kBaselineThreads};
}

}  // namespace

QuantizeVariant FindInt8Variant(Raw16 type, int head_dim) {
  switch (head_dim) {
    case 64:
      return Int8<64>(type);
    case 96:
      return Int8<96>(type);
    case 128:
      return Int8<128>(type);
    case 256:
      return Int8<256>(type);
    default:
      return {};
  }
}

QuantizeVariant FindRaw16Variant(Raw16 type, int head_dim) {
  switch (head_dim) {
    case 64:
      return Raw<64>(type);
    case 96:
      return Raw<96>(type);
    case 128:
      return Raw<128>(type);
    case 256:
      return Raw<256>(type);
    default:
      return {};
  }
}

}  // namespace kvferry::kernels
