#include <array>

#include "kernels/device/byte_codes.cuh"
#include "kernels/device/integer_codes.cuh"
#include "kernels/device/raw_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> AttentionVariantsD128() {
  static const std::array variants = {
      raw_variant<128>(),
      int8_variant<128>(),
      fp8_variant<128>(),
      scalar_variant<128, 2, 2, 64, 128>(),
      scalar_variant<128, 4, 4, 64, 128>(),
      scalar_variant<128, 4, 2, 64, 128>(),
      scalar_variant<128, 2, 4, 64, 128>(),
      scalar_variant<128, 8, 8, 64, 128>(),
      scalar_variant<128, 8, 4, 64, 128>(),
      scalar_variant<128, 2, 2, 32, 32>(),
      scalar_variant<128, 4, 4, 32, 32>(),
      scalar_variant<128, 4, 2, 32, 32>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
