#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/attend_raw_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/attend_tokens-inl.h"
// clang-format on

// Attention over values that stand in token order: 16-bit tokens, raw16, int8 and fp8
// blocks.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

void AttendRaw(const HeadRows& rows, int tokens, const QueryGroup& group,
               const SoftmaxState& state) {
  ReferenceOps().attend_raw(rows, tokens, group, state);
}
void AttendPlainBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                       const SoftmaxState& state) {
  ReferenceOps().attend_blocks(blocks, spec, group, state);
}

#else

template <Raw16 kType>
void AttendRawOf(const HeadRows& rows, int tokens, const QueryGroup& group,
                 const SoftmaxState& state) {
  for (int begin = 0; begin < tokens; begin += kBlockTokens) {
    const Raw16Source<kType> k = {rows.k + begin * rows.token_stride};
    const Raw16Source<kType> v = {rows.v + begin * rows.token_stride};
    AttendAllHeads(k, v, rows.token_stride, std::min(kBlockTokens, tokens - begin), nullptr,
                   nullptr, group, state);
  }
}

void AttendRaw(const HeadRows& rows, int tokens, const QueryGroup& group,
               const SoftmaxState& state) {
  if (rows.type == Raw16::kFp16) {
    AttendRawOf<Raw16::kFp16>(rows, tokens, group, state);
  } else {
    AttendRawOf<Raw16::kBf16>(rows, tokens, group, state);
  }
}

// Blocks of byte codes, one scale per token.
template <class Source, class Code>
void AttendByteBlocks(const HeadBlocks& blocks, const format::TokenScaleLayout& at,
                      const QueryGroup& group, const SoftmaxState& state) {
  for (std::size_t i = 0; i < blocks.count; ++i) {
    const std::byte* block = blocks.pages[i] + blocks.head_offset;
    const Source k = {reinterpret_cast<const Code*>(block + at.k_codes)};
    const Source v = {reinterpret_cast<const Code*>(block + at.v_codes)};
    AttendAllHeads(k, v, group.head_dim, kBlockTokens, block + at.k_scale, block + at.v_scale,
                   group, state);
  }
}

void AttendPlainBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                       const SoftmaxState& state) {
  const int d = spec.head_dim;
  if (spec.kind == BlockKind::kInt8) {
    return AttendByteBlocks<Int8Source, std::int8_t>(blocks, format::Int8Block(d), group, state);
  }
  if (spec.kind == BlockKind::kFp8) {
    return AttendByteBlocks<Fp8Source, std::uint8_t>(blocks, format::Fp8Block(d), group, state);
  }
  const format::Raw16Layout at = format::Raw16Block(d);
  for (std::size_t i = 0; i < blocks.count; ++i) {
    const std::byte* block = blocks.pages[i] + blocks.head_offset;
    const HeadRows rows = {reinterpret_cast<const std::uint16_t*>(block + at.k),
                           reinterpret_cast<const std::uint16_t*>(block + at.v), d, spec.raw_type};
    AttendRaw(rows, kBlockTokens, group, state);
  }
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(AttendRaw);
HWY_EXPORT(AttendPlainBlocks);

void AttendRawSimd(const HeadRows& rows, int tokens, const QueryGroup& group,
                   const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendRaw)(rows, tokens, group, state);
}

void AttendPlainBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                           const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendPlainBlocks)(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
#endif
