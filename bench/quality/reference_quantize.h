#pragma once

#include <ATen/core/Tensor.h>

#include "bench/quality/scheme.h"
#include "kvcodec/codebooks.h"

namespace kvferry::bench {

// cos and sin of every token's rotation: [tokens, head_dim / 2] fp32, on the values' device.
struct Rotations {
  at::Tensor cos, sin;
};

// Quantizes and dequantizes by the scheme, in plain LibTorch from the papers' formulas.
//   x: [heads, tokens, head_dim] fp32, tokens a multiple of block_tokens. rotations: of these
//   tokens; looked at for before_rope.
// The answer has the same shape. Throws as LibTorch does.
at::Tensor QuantizeDequantize(const at::Tensor& x, const TensorScheme& scheme, int block_tokens,
                              const Rotations& rotations);

// One side of one layer by its codebooks (CQ, arXiv 2405.03917), keys as they are before their
// rotation. x: [heads, tokens, head_dim] fp32.
at::Tensor NearestCentroids(const at::Tensor& x, const codec::Codebooks& books, int layer,
                            bool is_v, const Rotations& rotations);

// Levels of least squared error for the normal distribution of variance 1 (Lloyd, Max 1960), 2^bits
// of them, ascending; 1 to 4 bits.
at::Tensor LloydMaxLevels(int bits);

}  // namespace kvferry::bench
