#pragma once

// Which Highway targets the CPU backend is compiled for; include before foreach_target.h. Below
// AVX2 (no F16C, 4 lanes) the scalar reference does the work.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
