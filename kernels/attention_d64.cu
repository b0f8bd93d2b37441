#include <array>

#include "kernels/device/byte_codes.cuh"
#include "kernels/device/integer_codes.cuh"
#include "kernels/device/raw_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> AttentionVariantsD64() {
  static const std::array variants = {
      raw_variant<64>(),
      int8_variant<64>(),
      fp8_variant<64>(),
      scalar_variant<64, 2, 2, 64, 64>(),
      scalar_variant<64, 4, 4, 64, 64>(),
      scalar_variant<64, 4, 2, 64, 64>(),
      scalar_variant<64, 2, 4, 64, 64>(),
      scalar_variant<64, 8, 8, 64, 64>(),
      scalar_variant<64, 8, 4, 64, 64>(),
      scalar_variant<64, 2, 2, 32, 32>(),
      scalar_variant<64, 4, 4, 32, 32>(),
      scalar_variant<64, 4, 2, 32, 32>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
