#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kvcodec/codec.h"
#include "kvcodec/cpu/ops.h"

// Scalar work that also serves the SIMD backend: finding what is wrong with a block, and taking one
// apart for inspection.
namespace kvferry::codec::cpu {

// Why a block cannot be made. Token and channel count from the block's begin; channel < 0: the
// whole token, token < 0: the whole group of tokens.
struct BlockFault {
  bool is_v = false;
  bool not_finite = false;  // else a scale, min or zero point is outside fp16
  int token = 0;
  int channel = 0;
};
std::optional<BlockFault> FindFault(const HeadRows& rows, const BlockSpec& spec);

// k, v: [64, head_dim] fp32.
void DequantizeBlock(const std::byte* block, const BlockSpec& spec, const BlockPlace& place,
                     float* k, float* v);

}  // namespace kvferry::codec::cpu
