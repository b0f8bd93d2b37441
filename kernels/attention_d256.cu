#include <array>

#include "kernels/device/byte_codes.cuh"
#include "kernels/device/integer_codes.cuh"
#include "kernels/device/raw_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> AttentionVariantsD256() {
  static const std::array variants = {
      raw_variant<256>(),
      int8_variant<256>(),
      fp8_variant<256>(),
      scalar_variant<256, 2, 2, 64, 128>(),
      scalar_variant<256, 4, 4, 64, 128>(),
      scalar_variant<256, 4, 2, 64, 128>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
