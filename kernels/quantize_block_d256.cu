#include "kernels/device/scalar_variant.cuh"

namespace kvferry::kernels {

template QuantizeVariant FindScalarVariant<256>(codec::Raw16, int);

}  // namespace kvferry::kernels
