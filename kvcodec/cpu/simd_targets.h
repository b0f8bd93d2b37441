#pragma once

// Which Highway targets the CPU backend is compiled for; include before foreach_target.h. On other
// machines the scalar reference does the work.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#define HWY_WANT_AVX3_DL  // has VNNI

// True inside a target that has the SIMD code: AVX2 or better (F16C, pairwise 16-bit products).
#define KVFERRY_SIMD_TARGET \
  (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL)
