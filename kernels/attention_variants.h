#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/attention_args.h"
#include "kvcodec/codec.h"

// What of decode attention is compiled: a few kernels per file, since each takes seconds.
namespace kvferry::kernels {

std::span<const AttentionVariant> AttentionVariantsD64();
std::span<const AttentionVariant> AttentionVariantsD96();
std::span<const AttentionVariant> AttentionVariantsD128();
std::span<const AttentionVariant> AttentionVariantsD256();
std::span<const AttentionVariant> LutVariantsD64();
std::span<const AttentionVariant> LutVariantsD128();
std::span<const AttentionVariant> CoupledVariantsD64();
std::span<const AttentionVariant> CoupledVariantsD128();

// Null: not compiled.
const AttentionVariant* FindAttentionVariant(const codec::BlockSpec& spec);
// All of them, for errors and tests: "head_dim 128: K2V2 GK 64 GV 128, ...".
std::string ListAttentionVariants();
std::vector<AttentionVariant> AllAttentionVariants();

}  // namespace kvferry::kernels
