#include "kvcodec/cpu/simd.h"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/string_view.h"
#include "hwy/targets.h"
#include "kvcodec/cpu/cpu_backend.h"

namespace kvferry::codec {
namespace {

struct Target {
  const char* name;
  std::int64_t bit;
};

// Best first. What simd_targets.h compiles.
constexpr std::array kTargets = {Target{"avx512-vnni", HWY_AVX3_DL}, Target{"avx512", HWY_AVX3},
                                 Target{"avx2", HWY_AVX2}};

void Choose(std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace

std::vector<std::string> SimdTargets() {
  std::vector<std::string> names;
  for (const Target& target : kTargets) {
    if ((hwy::SupportedTargets() & target.bit) != 0) names.emplace_back(target.name);
  }
  return names;
}

absl::Status ForceSimdTarget(std::string_view target) {
  Choose(0);
  if (target.empty()) return absl::OkStatus();
  for (const Target& known : kTargets) {
    if (known.name != target || (hwy::SupportedTargets() & known.bit) == 0) continue;
    Choose(known.bit);
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("SIMD target '", ToAbsl(target),
                                          "' is not one of: ", absl::StrJoin(SimdTargets(), ", ")));
}

namespace cpu {

namespace {

// What SIMD knows about each kind of block. A kind without SIMD code would stand here with the
// functions of ReferenceOps().
struct SimdKind {
  bool (*quantize)(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
  void (*attend)(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                 const SoftmaxState& state);
};

SimdKind SimdOf(BlockKind kind) {
  switch (kind) {
    case BlockKind::kRaw16:
    case BlockKind::kInt8:
    case BlockKind::kFp8:
      return {QuantizePlainSimd, AttendPlainBlocksSimd};
    case BlockKind::kScalar:
      return {QuantizeScalarSimd, AttendScalarBlocksSimd};
    case BlockKind::kLut:
      return {QuantizeLutSimd, AttendLutBlocksSimd};
    case BlockKind::kCoupled:
      return {QuantizeCoupledSimd, AttendCoupledBlocksSimd};
  }
  std::abort();  // every caller has validated its spec
}

bool QuantizeSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return SimdOf(spec.kind).quantize(rows, spec, block);
}

void AttendBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                      const SoftmaxState& state) {
  SimdOf(spec.kind).attend(blocks, spec, group, state);
}

}  // namespace

const Ops& SimdOps() {
  static constexpr Ops kOps = {[]() -> const char* {
                                 for (const Target& target : kTargets) {
                                   if ((hwy::SupportedTargets() & target.bit) != 0) {
                                     return target.name;
                                   }
                                 }
                                 return "scalar";
                               },
                               QuantizeSimd, AttendRawSimd, AttendBlocksSimd};
  return kOps;
}

}  // namespace cpu
}  // namespace kvferry::codec
