#include <array>

#include "kernels/device/lut_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> LutVariantsD128() {
  static const std::array variants = {
      lut_variant<128, codec::LutTable::kNf4>(), lut_variant<128, codec::LutTable::kAnf4>(),
      lut_variant<128, codec::LutTable::kNf3>(), lut_variant<128, codec::LutTable::kLm3>(),
      lut_variant<128, codec::LutTable::kLm2>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
