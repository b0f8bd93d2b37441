#include "kernels/attention_variants.h"

#include <array>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvferry::kernels {
namespace {

constexpr std::array kByHeadDim = {
    AttentionVariantsD64, AttentionVariantsD96, AttentionVariantsD128, AttentionVariantsD256,
    LutVariantsD64,       LutVariantsD128,      CoupledVariantsD64,    CoupledVariantsD128};

}  // namespace

std::vector<AttentionVariant> AllAttentionVariants() {
  std::vector<AttentionVariant> all;
  for (const auto& variants : kByHeadDim) {
    all.insert(all.end(), variants().begin(), variants().end());
  }
  return all;
}

const AttentionVariant* FindAttentionVariant(const codec::BlockSpec& spec) {
  for (const auto& variants : kByHeadDim) {
    for (const AttentionVariant& variant : variants()) {
      codec::BlockSpec same = spec;
      same.raw_type = variant.spec.raw_type;
      same.codebooks = nullptr;
      same.layer = 0;
      if (variant.spec == same) return &variant;
    }
  }
  return nullptr;
}

std::string ListAttentionVariants() {
  std::string list;
  for (const auto& variants : kByHeadDim) {
    absl::StrAppend(&list, list.empty() ? "" : "; ", "head_dim ", variants()[0].spec.head_dim, ":");
    for (const AttentionVariant& variant : variants()) {
      if (variant.spec.kind == codec::BlockKind::kRaw16) {
        absl::StrAppend(&list, " 16 bit");
        continue;
      }
      if (variant.spec.kind == codec::BlockKind::kInt8) {
        absl::StrAppend(&list, " int8");
        continue;
      }
      if (variant.spec.kind == codec::BlockKind::kFp8) {
        absl::StrAppend(&list, " fp8");
        continue;
      }
      if (variant.spec.kind == codec::BlockKind::kCoupled) {
        absl::StrAppend(&list, " cq-", variant.spec.coupling.channels, "c",
                        variant.spec.coupling.bits, "b");
        continue;
      }
      if (variant.spec.kind == codec::BlockKind::kLut) {
        absl::StrAppend(&list, " ", codec::FindLut(variant.spec.table)->name);
        continue;
      }
      absl::StrAppend(&list, " K", variant.spec.k_bits, "V", variant.spec.v_bits, "-GK",
                      variant.spec.k_group_tokens, "-GV", variant.spec.v_group_channels);
    }
  }
  return list;
}

}  // namespace kvferry::kernels
