#pragma once

#include "kvcodec/cpu/ops.h"

// The SIMD operations, each dispatched to the best target of this CPU. A CPU with none of them gets
// the scalar reference.
namespace kvferry::codec::cpu {

bool QuantizeSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
void AttendRawSimd(const HeadRows& rows, int tokens, const QueryGroup& group,
                   const SoftmaxState& state);
// Of kRaw16 and kInt8 blocks.
void AttendPlainBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                           const SoftmaxState& state);
// Of all kinds.
void AttendBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                      const SoftmaxState& state);

}  // namespace kvferry::codec::cpu
