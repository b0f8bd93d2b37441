#include "kernels/device/quantize_baselines.cuh"
#include "kernels/quantize_variants.h"

namespace kvferry::kernels {
namespace {

using codec::Raw16;

template <class Maker, int kHeadDim>
QuantizeVariant OfBytes(Raw16 type) {
  return {type == Raw16::kFp16 ? quantize_bytes_kernel<Maker, Raw16::kFp16, kHeadDim>
                               : quantize_bytes_kernel<Maker, Raw16::kBf16, kHeadDim>,
          kBaselineThreads};
}

template <class Maker>
QuantizeVariant FindBytesVariant(Raw16 type, int head_dim) {
  switch (head_dim) {
    case 64:
      return OfBytes<Maker, 64>(type);
    case 96:
      return OfBytes<Maker, 96>(type);
    case 128:
      return OfBytes<Maker, 128>(type);
    case 256:
      return OfBytes<Maker, 256>(type);
    default:
      return {};
  }
}

template <int kHeadDim>
QuantizeVariant Raw(Raw16 type) {
  return {type == Raw16::kFp16 ? quantize_raw16_kernel<Raw16::kFp16, kHeadDim>
                               : quantize_raw16_kernel<Raw16::kBf16, kHeadDim>,
          kBaselineThreads};
}

}  // namespace

QuantizeVariant FindInt8Variant(Raw16 type, int head_dim) {
  return FindBytesVariant<Int8Maker>(type, head_dim);
}

QuantizeVariant FindFp8Variant(Raw16 type, int head_dim) {
  return FindBytesVariant<Fp8Maker>(type, head_dim);
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
