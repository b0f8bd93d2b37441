#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/chunk_check.h"
#include "kernels/cuda/stream.h"
#include "kernels/device_codebooks.h"
#include "kernels/quantize_types.h"
#include "kvcodec/backend.h"
#include "kvcodec/codec.h"

namespace kvferry::kernels {

struct CoupledQuantize {
  codec::Coupling coupling;
  CoupledTables tables;   // DeviceCodebooks
  int kv_head_begin = 0;  // of the items' heads, among those that have codebooks
};

// Quantizes many pages of many layers in one launch, byte for byte what kvcodec/cpu makes: keys per
// channel over the block's tokens, values per token over channels (KIVI, arXiv 2402.02750), or both
// per token.
// Reads the values once and writes the finished blocks once, in wire order; their CRC32C comes from
// the same pass.
struct QuantizeParams {
  const QuantizeItem* items = nullptr;  // [max_items], device memory
  int max_items = 0;
  const unsigned* item_count = nullptr;  // device memory: items from there on are skipped; or null
  int kv_heads = 0;
  int head_dim = 0;
  codec::BlockKind kind = codec::BlockKind::kScalar;
  codec::Raw16 type = codec::Raw16::kFp16;  // of k and v; of kRaw16 blocks too
  int k_group_tokens = 0;                   // GK and GV of kScalar
  int v_group_channels = 0;
  codec::LutTable table{};               // of kLut
  CoupledQuantize coupled;               // of kCoupled
  Widths widths = kAllWidths;            // of kScalar: no item has others, for K or V
  std::uint64_t* first_fault = nullptr;  // device memory; see FaultKey. Only ever lowered
  // For the checksum, or null: [chunks] words in device memory, to which the residues of the pages
  // are added (XOR). The caller zeroes them before and gives them to FinishChunkCheck after.
  std::uint32_t* residues = nullptr;
  const CheckTables* tables = nullptr;  // of this device, with residues
  unsigned items_ahead = 0;             // set by the launch: whose values a CTA fetches
};

// The fields of QuantizeParams that a spec decides, on the calling thread's device. Errors:
// CheckCodebooks, DeviceCodebooks.
absl::StatusOr<QuantizeParams> QuantizeParamsOf(const codec::BlockSpec& spec, codec::Raw16 type,
                                                int kv_head_begin, int kv_heads);
// Widths of K and V of a spec.
inline Widths WidthsOf(const codec::BlockSpec& spec) {
  if (spec.kind != codec::BlockKind::kScalar) return kAllWidths;
  return WidthOf(spec.k_bits) | WidthOf(spec.v_bits);
}

// OK where LaunchQuantizeBlock has a kernel for blocks of this spec, else kUnimplemented with the
// list of those that are compiled.
absl::Status SupportsQuantize(const codec::BlockSpec& spec);

// Asynchronous on `stream`; captured by CUDA graphs. The pages of a fault are unspecified; the
// caller looks at *first_fault before it believes any page.
//   kInvalidArgument: shape, alignment, a null pointer. kUnimplemented: a combination that is not
//   compiled, with the list of those that are.
absl::Status LaunchQuantizeBlock(const QuantizeParams& params, Stream& stream);

// OK for kNoFault, else kInvalidArgument in the words of the CPU backend: "layer 3, head 1, K,
// token 77, channel 5: ...". origins: of the items, in order.
absl::Status FaultStatus(std::uint64_t first_fault, std::span<const codec::BlockOrigin> origins);

}  // namespace kvferry::kernels
