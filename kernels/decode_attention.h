#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/attention_plan.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"
#include "kvcodec/codec.h"

namespace kvferry::kernels {

// Where the cache of one sequence lies, the same for all layers: a layer adds its own offsets
// (AttentionLayer). An array of these is in device memory and changes with every step.
struct AttentionSequence {
  // K of KV head 0: [kv_heads, sink_capacity, head_dim]; V follows, the same.
  const std::uint16_t* sinks = nullptr;
  // K [kv_heads, window_capacity, head_dim], then V: a ring.
  const std::uint16_t* window = nullptr;
  std::int32_t sink_tokens = 0;
  std::int32_t window_begin = 0;   // ring row of the oldest token
  std::int32_t window_tokens = 0;  // the query tokens included: at least as many as these
  std::int32_t first_page = 0;     // in the page table: page_begin of its AttentionLength
};
static_assert(sizeof(AttentionSequence) == 32);

// What stays the same for all steps and layers.
struct AttentionConfig {
  // Of one layer; layers with other bits have an own DecodeAttention, those with other codebooks
  // (AttentionLayer::layer) have not.
  codec::BlockSpec spec;
  int q_heads = 0;
  int kv_heads = 0;      // q_heads / kv_heads: 1..kMaxQueryGroup
  int query_tokens = 1;  // 1..kMaxQueryTokens of each sequence, the newest of its window
  codec::Raw16 type = codec::Raw16::kFp16;  // of q, out, sinks and window
  float scale = 0;                          // applied to q.k, normally 1 / sqrt(head_dim)
  int sink_capacity = 0;
  int window_capacity = 0;
  int max_sequences = 0;
};

// One layer of one step. All pointers are in device memory.
struct AttentionLayer {
  const AttentionSequence* sequences = nullptr;  // [max_sequences]
  // This layer's page table: the pages of sequence s are pages[page_begin .. + blocks) of its
  // AttentionLength.
  const std::byte* const* pages = nullptr;
  int layer = 0;                 // of the model, where blocks are coupled
  std::int64_t sink_offset = 0;  // in elements, added to every `sinks`
  std::int64_t window_offset = 0;
  // [sequences, query_tokens, q_heads, head_dim], 16-byte aligned. Query head h reads KV head
  // h / (q_heads / kv_heads); query token i sees all but the query_tokens - 1 - i newest tokens.
  const std::uint16_t* q = nullptr;
  std::uint16_t* out = nullptr;
  // Pages, their table and the plan were written before the kernel ahead of this one in the stream
  // began: the first pages are then fetched while that one still runs.
  bool pages_settled = false;
  float* log_sum = nullptr;  // [sequences, query_tokens, q_heads]: natural log of the sum of
                             // exp(score), to merge with other parts; or null
};

// Decode attention on the codes: one softmax over sinks, compressed pages and window; no code is
// ever converted to a 16-bit value. Owns the plan's and the partial results' device memory, whose
// addresses stay for life: a captured launch may be replayed after another Plan of as many
// sequences that gave the same launch_kind.
// Thread: one at a time; all calls on one stream.
class DecodeAttention {
 public:
  // kUnimplemented: a combination that is not compiled, with the list
  // (kernels/attention_variants.h). kInvalidArgument: shape. kResourceExhausted: device memory.
  static absl::StatusOr<std::unique_ptr<DecodeAttention>> Create(const AttentionConfig& config);
  virtual ~DecodeAttention() = default;

  // Once per step, before its first layer: cuts the work (PlanAttention) and copies the plan.
  //   lengths: of the sequences, in order; at most max_sequences. Read before this returns.
  virtual absl::Status Plan(std::span<const AttentionLength> lengths, Stream& stream) = 0;
  // Which of its kernels the plan is for, whether in clusters, and for how many thread blocks: of a
  // captured launch as fixed as the number of sequences.
  virtual int launch_kind() const = 0;
  // One layer. Asynchronous; captured by CUDA graphs. The same plan gives the same bits.
  virtual absl::Status Launch(const AttentionLayer& layer, Stream& stream) = 0;
};

}  // namespace kvferry::kernels
