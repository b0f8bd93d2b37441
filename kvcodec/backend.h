#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcodec/codec.h"
#include "kvcodec/kv_view.h"

namespace kvferry::codec {

// Where a page stands: for errors ("layer 3, head 1, token 77"), and for coupled blocks, whose
// codebooks go by head and whose keys turn by position.
struct BlockOrigin {
  int layer = 0;
  int kv_head_begin = 0;
  int token_begin = 0;
};

// The cache of one sequence in one layer, as attention reads it: its first token stands at
// position 0. Nothing is owned; all memory is of
// the backend's device.
struct SequenceKv {
  KvView sinks;  // first tokens; tokens may be 0
  std::span<const std::byte* const>
      pages;  // compressed pages in token order, each PageBytes(spec, kv_heads), 128-byte aligned
  KvView window;  // newest tokens, the current one included
};

// One layer's decode attention of a ragged batch: one query token per sequence, one softmax over
// sinks, pages and window.
//   q, out: [sequences, q_heads, head_dim] fp32, contiguous. Query head h reads KV head h /
//   (q_heads / kv_heads).
struct AttentionArgs {
  BlockSpec spec;
  int q_heads = 0;
  int kv_heads = 0;
  float scale = 0;  // applied to q.k, normally 1 / sqrt(head_dim)
  std::span<const SequenceKv> sequences;
  const float* q = nullptr;
  float* out = nullptr;
};

// What is to become pages of one layer: kv has several times 64 tokens. origin: of the first.
struct PageRun {
  KvView kv;
  BlockSpec spec;
  BlockOrigin origin;
};

// kInvalidArgument: not whole pages of their specs, or not `out_bytes` of them in all.
absl::Status CheckRuns(std::span<const PageRun> runs, std::size_t out_bytes);

// Makes the bytes that leave a prefill worker: the CPU backend in kvcodec/cpu, CudaQuantizer in
// kernels, the same bytes on both. K and V are of its device, what it writes is host memory or of
// its device.
// Thread: any; calls from several threads at once are allowed.
class Quantizer {
 public:
  virtual ~Quantizer() = default;

  // "cpu-avx512", "cpu-scalar", "cuda": for logs, benches and `kvferry codecs`.
  virtual std::string name() const = 0;
  // OK, or kUnimplemented with the list of what this backend has, or as CheckCodebooks.
  virtual absl::Status Supports(const BlockSpec& spec) const = 0;

  // Makes one page of 64 tokens, keys per channel and values per token (docs/format.md).
  //   kv: [kv_heads, 64, head_dim]. page: PageBytes(spec, kv.kv_heads) bytes, 128-byte aligned.
  // kInvalidArgument: shape or size; NaN, Inf, or a scale outside fp16: names layer, head, token or
  // channel. page is then unspecified.
  virtual absl::Status Quantize(const KvView& kv, const BlockSpec& spec, const BlockOrigin& origin,
                                std::span<std::byte> page) const = 0;

  // The pages of all runs, in turn, each run's in token order; they fill `out`. Returns its CRC32C.
  virtual absl::StatusOr<std::uint32_t> QuantizeRuns(std::span<const PageRun> runs,
                                                     std::span<std::byte> out) const;
  // One run alone.
  absl::Status QuantizePages(const KvView& kv, const BlockSpec& spec, const BlockOrigin& origin,
                             std::span<std::byte> pages) const;
  // 16-bit tokens as they travel and rest, [K: kv_heads, tokens, head_dim][V: the same].
  //   out: Raw16Bytes(kv.tokens, kv.kv_heads, kv.head_dim) bytes.
  virtual absl::Status CopyTokens(const KvView& kv, std::span<std::byte> out) const;

  // CRC32C of what the others have written, computed where it lies.
  virtual absl::StatusOr<std::uint32_t> Check(std::span<const std::byte> bytes) const;

  // KvView::ready for values that the caller has enqueued, and not yet seen done, on the device's
  // own queue of work. Thread: the one that enqueues.
  virtual std::uint64_t MarkReady() const { return 0; }
};

// Where codes are made and attended on, all in the memory of one device.
class Backend : public Quantizer {
 public:
  // For inspection and tests. k, v: [kv_heads, 64, head_dim] fp32, contiguous.
  virtual absl::Status Dequantize(std::span<const std::byte> page, const BlockSpec& spec,
                                  const BlockOrigin& origin, int kv_heads, std::span<float> k,
                                  std::span<float> v) const = 0;

  // kInvalidArgument: shape. kFailedPrecondition: no codebooks. out is unspecified unless OK.
  virtual absl::Status DecodeAttention(const AttentionArgs& args) const = 0;
};

}  // namespace kvferry::codec
