#pragma once

#include "kvcodec/cpu/ops.h"

// The SIMD operations, each dispatched to the best target of this CPU. A CPU with none of them gets
// the scalar reference.
namespace kvferry::codec::cpu {

void AttendRawSimd(const HeadRows& rows, int tokens, const QueryGroup& group,
                   const SoftmaxState& state);

// Blocks whose values stand in token order: kRaw16, kInt8, kFp8.
bool QuantizePlainSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
void AttendPlainBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                           const SoftmaxState& state);

// kScalar blocks.
bool QuantizeScalarSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
void AttendScalarBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec,
                            const QueryGroup& group, const SoftmaxState& state);

// kLut blocks.
bool QuantizeLutSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
void AttendLutBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                         const SoftmaxState& state);

// kCoupled blocks.
bool QuantizeCoupledSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
void AttendCoupledBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec,
                             const QueryGroup& group, const SoftmaxState& state);

}  // namespace kvferry::codec::cpu
