#include "kernels/device/scalar_variant.cuh"

namespace kvferry::kernels {

template QuantizeVariant FindScalarVariant<256>(codec::Raw16, int, bool);

}  // namespace kvferry::kernels
