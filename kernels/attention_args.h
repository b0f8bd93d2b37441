#pragma once

#include <cstdint>

#include "kernels/attention_plan.h"
#include "kernels/decode_attention.h"
#include "kernels/device_codebooks.h"

namespace kvferry::kernels {

// In place of a word of a partial result that has not been written: a NaN that no arithmetic makes.
inline constexpr std::uint32_t kAbsent = 0xffffffffu;
inline constexpr int kAbsentByte = 0xff;  // each of its bytes
// Copies of the reference and sum of p of a row of a partial result, for as many warps that merge
// one row at most.
inline constexpr int kPartialTops = 8;

// What the kernel of decode attention gets: an AttentionLayer with the plan and the constants.
struct AttentionArgs {
  const AttentionPiece* pieces;  // one per thread block
  const AttentionSequence* sequences;
  const std::byte* const* pages;
  const std::uint16_t* q;
  std::uint16_t* out;
  float* log_sum;
  float* partial_sums;   // [partial][kColumns][head_dim]; all kAbsent between launches, as those
  float2* partial_tops;  // [partial][kColumns][kPartialTops]: reference and sum of p
  std::int64_t sink_offset, window_offset;
  CoupledTables coupled;  // of coupled blocks: `centroids` are this layer's
  int kv_heads, group, query_tokens;
  int sink_capacity, window_capacity;
  float scale_log2;  // scale * log2(e)
  bool bf16;
  bool pages_settled;  // AttentionLayer's; launched as a programmatic dependent then
  bool clustered;      // AttentionShape's; launched in clusters of kClusterBlocks then
};

// One way to run a variant.
struct AttentionKernel {
  const void* function;  // void(AttentionArgs)
  int warps;             // of a thread block
  int shared_bytes;
};

// With small thread blocks, several on a multiprocessor, or with one large one. The large one
// leaves few partial results to merge, which is most of the time where one sequence is spread over
// the device, and reads long runs faster.
struct AttentionKernels {
  AttentionKernel small, large;
};

struct AttentionVariant {
  codec::BlockSpec spec;  // raw_type and codebooks are not looked at
  AttentionKernels any_rows;
  AttentionKernels few_rows = {};  // faster, for up to most_few_rows query rows of a KV head
  int most_few_rows = 0;
};

}  // namespace kvferry::kernels
