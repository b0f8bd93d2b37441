#include "kvcodec/cpu/simd.h"

#include <bit>

#include "hwy/targets.h"

namespace kvferry::codec::cpu {
namespace {

const char* BestTargetName() {
  const std::int64_t targets = hwy::SupportedTargets();
  if ((targets & HWY_AVX3) != 0) return "avx512";
  if ((targets & HWY_AVX2) != 0) return "avx2";
  if ((targets & HWY_NEON) != 0) return "neon";
  return "scalar";
}

}  // namespace

const Ops& SimdOps() {
  static const Ops ops = {BestTargetName(), QuantizeSimd, AttendRawSimd, AttendBlocksSimd};
  return ops;
}

}  // namespace kvferry::codec::cpu
