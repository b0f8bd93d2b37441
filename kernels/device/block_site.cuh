#pragma once

#include <cstdint>

#include "kernels/attention_args.h"
#include "kvcodec/format.h"

namespace kvferry::kernels {

// Which block a warp attends on: for codes that depend on the head or the position.
struct BlockSite {
  const AttentionArgs& args;
  const AttentionPiece& piece;
  const char* tables;  // of its codes, in shared memory
  int kv_head;
  int block;  // of the piece

  // The position of its first token. Loads: for codes that need it.
  __device__ __forceinline__ std::int64_t token() const {
    const AttentionSequence& sequence = args.sequences[piece.sequence];
    const int of_sequence = piece.page_begin - sequence.first_page + block;
    return sequence.sink_tokens + std::int64_t{of_sequence} * codec::format::kTokens;
  }
};

}  // namespace kvferry::kernels
