#pragma once

#include <cstddef>
#include <cstdint>

#include "kvcodec/codec.h"
#include "kvcodec/kv_view.h"

// What the CPU backend is made of: a handful of functions on one KV head, once as scalar reference
// and once per SIMD target. Shapes and alignment are checked by the caller.
namespace kvferry::codec::cpu {

// Where a block stands: coupled blocks have codebooks by head, and turn keys by position.
struct BlockPlace {
  int kv_head = 0;
  std::int64_t token = 0;  // its first
};

// K and V of one KV head: rows of head_dim values, `token_stride` elements apart.
struct HeadRows {
  const std::uint16_t* k = nullptr;
  const std::uint16_t* v = nullptr;
  std::int64_t token_stride = 0;
  Raw16 type = Raw16::kFp16;
  const std::uint16_t* next_k = nullptr;  // K of the head that comes next, to be fetched early
  BlockPlace place;                       // of the first token
};

// The query heads that share one KV head.
//   q: [heads, head_dim] fp32, already multiplied by the softmax scale and log2(e).
struct QueryGroup {
  const float* q = nullptr;
  int heads = 0;
  int head_dim = 0;
};

// Running softmax of a query group, base 2: out = o / l where l = sum of 2^(score - m).
//   m, l: [heads]; o: [heads, head_dim], 64-byte aligned.
struct SoftmaxState {
  float* m = nullptr;
  float* l = nullptr;
  float* o = nullptr;
};

// Blocks of one KV head: block i is at pages[i] + head_offset.
struct HeadBlocks {
  const std::byte* const* pages = nullptr;
  std::size_t count = 0;
  std::size_t head_offset = 0;
  const std::byte* after = nullptr;  // block that comes after the last, to be fetched early
  BlockPlace place;                  // of the first block
};

struct Ops {
  const char* (*name)();
  // 64 tokens into one block. false: a value is not finite or a scale does not fit fp16; FindFault
  // tells which.
  bool (*quantize)(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
  // Adds `tokens` 16-bit tokens to the state.
  void (*attend_raw)(const HeadRows& rows, int tokens, const QueryGroup& group,
                     const SoftmaxState& state);
  // Adds compressed blocks to the state, without ever forming K or V.
  void (*attend_blocks)(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                        const SoftmaxState& state);
};

const Ops& ReferenceOps();
// Of the best SIMD target that this CPU has.
const Ops& SimdOps();

}  // namespace kvferry::codec::cpu
