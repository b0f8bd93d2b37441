#include <array>

#include "kernels/device/coupled_codes.cuh"

namespace kvferry::kernels {

std::span<const AttentionVariant> CoupledVariantsD64() {
  static const std::array variants = {
      coupled_variant<64, 2, 8>(),  coupled_variant<64, 4, 8>(), coupled_variant<64, 8, 8>(),
      coupled_variant<64, 8, 10>(), coupled_variant<64, 2, 4>(),
  };
  return variants;
}

}  // namespace kvferry::kernels
