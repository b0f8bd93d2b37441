#pragma once

#include <cstddef>
#include <cstdint>

namespace kvferry::codec {

// The 16-bit types in which K and V leave the model, wait in windows and rest in raw16 blocks.
enum class Raw16 : std::uint8_t { kFp16 = 1, kBf16 = 2 };

// K and V of one layer, not owned. Element (head, token, channel) of k is
// k[head * head_stride + token * token_stride + channel], strides in elements, the same for v.
//   k, v: [kv_heads, tokens, head_dim], head_dim contiguous, 16-byte aligned rows.
struct KvView {
  const std::uint16_t* k = nullptr;
  const std::uint16_t* v = nullptr;
  Raw16 type = Raw16::kFp16;
  int kv_heads = 0;
  int tokens = 0;
  int head_dim = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
  std::uint64_t ready = 0;  // of Quantizer::MarkReady: when the values are there; 0: they are

  // Tokens [begin, begin + count) of this view.
  KvView Tokens(int begin, int count) const {
    KvView part = *this;
    part.k += begin * token_stride;
    part.v += begin * token_stride;
    part.tokens = count;
    return part;
  }
};

}  // namespace kvferry::codec
