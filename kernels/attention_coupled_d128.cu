#include <array>

#include "kernels/device/coupled_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> CoupledVariantsD128() {
  static const std::array variants = {
      coupled_variant<128, 2, 8>(),  coupled_variant<128, 4, 8>(), coupled_variant<128, 8, 8>(),
      coupled_variant<128, 8, 10>(), coupled_variant<128, 2, 4>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
