#include "kernels/device/scalar_variant.cuh"

namespace kvferry::kernels {

template QuantizeVariant FindScalarVariant<128>(codec::Raw16, int, bool);

}  // namespace kvferry::kernels
