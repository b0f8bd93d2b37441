#include "kernels/device/scalar_variant.cuh"

namespace kvferry::kernels {

template QuantizeVariant FindScalarVariant<64>(codec::Raw16, int, bool);

}  // namespace kvferry::kernels
