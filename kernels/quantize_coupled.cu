#include "kernels/device/quantize_coupled.cuh"
#include "kernels/quantize_variants.h"

namespace kvferry::kernels {
namespace {

using codec::Raw16;

template <int kChannels>
QuantizeVariant Coupled(Raw16 type) {
  return {type == Raw16::kFp16 ? quantize_coupled_kernel<Raw16::kFp16, kChannels>
                               : quantize_coupled_kernel<Raw16::kBf16, kChannels>,
          kCoupledThreads};
}

}  // namespace

QuantizeVariant FindCoupledVariant(Raw16 type, int head_dim, const codec::Coupling& coupling) {
  if (!codec::format::IsHeadDim(head_dim) || !codec::IsCoupling(coupling)) return {};
  switch (coupling.channels) {
    case 2:
      return Coupled<2>(type);
    case 4:
      return Coupled<4>(type);
    default:
      return Coupled<8>(type);
  }
}

int CoupledSharedBytes(int head_dim, const codec::Coupling& coupling) {
  return codec::format::CoupledBlock(head_dim, coupling.channels, coupling.bits).bytes +
         coupled_shared_bytes(coupling);
}

}  // namespace kvferry::kernels
