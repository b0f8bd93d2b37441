#include <algorithm>
#include <bit>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"
#include "kernels/quantize_block.h"
#include "kernels/quantize_variants.h"
#include "kvcodec/describe.h"
#include "kvcodec/format.h"

namespace kvferry::kernels {
namespace {

using codec::BlockKind;

constexpr int kMaxItems = 65535;  // of one grid
constexpr char kCompiled[] =
    "There are raw16, int8, fp8, lut and coupled at head_dim 64, 96, 128, 256, and scalar with "
    "bits 1, 2, 3, 4, 8, GK 32, 64 and GV 32, 64, 128 that divides head_dim";

QuantizeVariant FindVariant(const QuantizeParams& params) {
  switch (params.kind) {
    case BlockKind::kRaw16:
      return FindRaw16Variant(params.type, params.head_dim);
    case BlockKind::kInt8:
      return FindInt8Variant(params.type, params.head_dim);
    case BlockKind::kFp8:
      return FindFp8Variant(params.type, params.head_dim);
    case BlockKind::kLut:
      if (codec::FindLut(params.table) == nullptr) return {};
      return FindLutVariant(params.type, params.head_dim);
    case BlockKind::kCoupled:
      return FindCoupledVariant(params.type, params.head_dim, params.coupled.coupling);
    case BlockKind::kScalar:
      break;
    default:
      return {};
  }
  if (params.widths == 0 || (params.widths & ~kAllWidths) != 0) return {};
  const bool any_width = (params.widths & ~kFastWidths) != 0;
  if (params.k_group_tokens != 32 && params.k_group_tokens != 64) return {};
  switch (params.head_dim) {
    case 64:
      return FindScalarVariant<64>(params.type, params.v_group_channels, any_width);
    case 96:
      return FindScalarVariant<96>(params.type, params.v_group_channels, any_width);
    case 128:
      return FindScalarVariant<128>(params.type, params.v_group_channels, any_width);
    case 256:
      return FindScalarVariant<256>(params.type, params.v_group_channels, any_width);
    default:
      return {};
  }
}

// Where a CTA puts its block, or side of one, together.
int SharedBytes(const QuantizeParams& params) {
  if (params.kind == BlockKind::kRaw16) return 0;
  if (params.kind == BlockKind::kInt8 || params.kind == BlockKind::kFp8) {
    return codec::format::Int8Block(params.head_dim).bytes;
  }
  if (params.kind == BlockKind::kLut) {
    const codec::Lut& lut = *codec::FindLut(params.table);
    return codec::format::LutBlock(params.head_dim, lut.bits, lut.shifted_keys).bytes;
  }
  if (params.kind == BlockKind::kCoupled) {
    return CoupledSharedBytes(params.head_dim, params.coupled.coupling);
  }
  const int bits = std::bit_width(params.widths) - 1;
  const codec::format::ScalarLayout at = codec::format::ScalarBlock(
      params.head_dim, bits, bits, params.k_group_tokens, params.v_group_channels);
  return std::max(at.v_codes, at.bytes - at.v_codes);
}

// Half as many as run at a time. Items behind a count of the device are not to be looked at.
unsigned ItemsAhead(const QuantizeParams& params, const QuantizeVariant& variant) {
  int device = 0, multiprocessors = 0;
  if (params.item_count != nullptr || cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess) {
    return 0;
  }
  const int ctas = multiprocessors * variant.ctas_per_sm / 2;
  const int of_item = params.kv_heads * variant.ctas_per_head;
  return static_cast<unsigned>((ctas + of_item - 1) / of_item);
}

absl::Status Check(const QuantizeParams& params) {
  const auto invalid = [](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("quantize_block: ", what...));
  };
  if (params.max_items < 0 || params.max_items > kMaxItems) {
    return invalid(params.max_items, " items; one launch takes at most ", kMaxItems);
  }
  if (params.kv_heads <= 0 || params.kv_heads >= kFaultHeads) {
    return invalid(params.kv_heads, " KV heads; at most ", kFaultHeads - 1);
  }
  if (params.items == nullptr || params.first_fault == nullptr) {
    return invalid("items or first_fault is null");
  }
  if (reinterpret_cast<std::uintptr_t>(params.items) % alignof(QuantizeItem) != 0) {
    return invalid("items are not aligned to ", alignof(QuantizeItem), " bytes");
  }
  if (params.kind == BlockKind::kCoupled && params.coupled.tables.centroids == nullptr) {
    return invalid("coupled blocks without codebooks");
  }
  if ((params.residues == nullptr) != (params.tables == nullptr)) {
    return invalid("residues and tables go together");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SupportsQuantize(const codec::BlockSpec& spec) {
  if (absl::Status status = spec.Validate(); !status.ok()) return status;
  switch (spec.kind) {
    case BlockKind::kRaw16:
    case BlockKind::kInt8:
    case BlockKind::kFp8:
    case BlockKind::kLut:
    case BlockKind::kScalar:
      return absl::OkStatus();
    case BlockKind::kCoupled:
      return codec::CheckCodebooks(spec, 1);
    default:
      return absl::UnimplementedError(
          absl::StrCat("quantize_block: ", codec::SpecText(spec), " is not compiled. ", kCompiled));
  }
}

absl::Status LaunchQuantizeBlock(const QuantizeParams& params, Stream& stream) {
  if (const absl::Status status = Check(params); !status.ok()) return status;
  const QuantizeVariant variant = FindVariant(params);
  if (variant.kernel == nullptr) {
    return absl::UnimplementedError(absl::StrCat(
        "quantize_block: kind ", static_cast<int>(params.kind), ", head_dim ", params.head_dim,
        ", widths ", absl::Hex(params.widths), ", GK ", params.k_group_tokens, ", GV ",
        params.v_group_channels, " is not compiled. ", kCompiled));
  }
  if (params.max_items == 0) return absl::OkStatus();
  const dim3 grid(params.kv_heads * variant.ctas_per_head, params.max_items);
  QuantizeParams with_ahead = params;
  with_ahead.items_ahead = ItemsAhead(params, variant);
  variant.kernel<<<grid, variant.threads, SharedBytes(params), stream.get()>>>(with_ahead);
  return LaunchStatus("quantize_block");
}

absl::StatusOr<QuantizeParams> QuantizeParamsOf(const codec::BlockSpec& spec, codec::Raw16 type,
                                                int kv_head_begin, int kv_heads) {
  QuantizeParams params;
  params.kv_heads = kv_heads;
  params.head_dim = spec.head_dim;
  params.kind = spec.kind;
  params.type = type;
  params.k_group_tokens = spec.k_group_tokens;
  params.v_group_channels = spec.v_group_channels;
  params.table = spec.table;
  params.widths = WidthsOf(spec);
  if (spec.kind != BlockKind::kCoupled) return params;
  if (absl::Status status = codec::CheckCodebooks(spec, kv_head_begin + kv_heads); !status.ok()) {
    return status;
  }
  absl::StatusOr<CoupledTables> tables = DeviceCodebooks(*spec.codebooks);
  if (!tables.ok()) return tables.status();
  params.coupled = {.coupling = spec.coupling, .tables = *tables, .kv_head_begin = kv_head_begin};
  return params;
}

absl::Status FaultStatus(std::uint64_t first_fault, std::span<const codec::BlockOrigin> origins) {
  if (first_fault == kNoFault) return absl::OkStatus();
  const Fault fault = FaultOf(first_fault);
  if (fault.item >= origins.size()) {
    return absl::InternalError(
        absl::StrCat("quantize_block: a fault in item ", fault.item, " of ", origins.size()));
  }
  const codec::BlockOrigin& origin = origins[fault.item];
  std::string where = absl::StrCat("layer ", origin.layer, ", head ",
                                   origin.kv_head_begin + fault.head, ", ", fault.is_v ? "V" : "K");
  if (fault.is_v || !fault.is_scale) {
    absl::StrAppend(&where, ", token ", origin.token_begin + fault.token);
  }
  if (!fault.is_v || !fault.is_scale) absl::StrAppend(&where, ", channel ", fault.channel);
  return absl::InvalidArgumentError(
      absl::StrCat("gpu quantize: ", where,
                   fault.is_scale ? ": the scale, min or zero point is outside fp16"
                                  : ": the value is NaN or infinite"));
}

}  // namespace kvferry::kernels
