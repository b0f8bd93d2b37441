#pragma once

#include <cstdint>
#include <span>

#include "model/tensor_type.h"

namespace kvferry::model {

// The values of a stored tensor (or of whole rows of one) as fp32, exactly as ggml defines them.
//   data: whole blocks of `type`. out: as many values as `data` holds.
void Dequantize(TensorType type, std::span<const std::uint8_t> data, float* out);

}  // namespace kvferry::model
