#include <array>

#include "kernels/device/byte_codes.cuh"
#include "kernels/device/integer_codes.cuh"
#include "kernels/device/raw_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> AttentionVariantsD96() {
  static const std::array variants = {
      raw_variant<96>(),
      int8_variant<96>(),
      fp8_variant<96>(),
      scalar_variant<96, 2, 2, 64, 32>(),
      scalar_variant<96, 4, 4, 64, 32>(),
      scalar_variant<96, 4, 2, 64, 32>(),
      scalar_variant<96, 2, 2, 32, 32>(),
      scalar_variant<96, 4, 4, 32, 32>(),
      scalar_variant<96, 4, 2, 32, 32>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
