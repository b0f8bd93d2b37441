#pragma once

#include <cuda_fp16.h>

#include <cstdint>

// The quantizer of docs/format.md on one group: kvcodec/cpu/group_scale.h for the device, with
// every fp32 operation rounded on its own.
namespace kvferry::kernels {

struct GroupScale {
  std::uint16_t scale = 0;
  std::uint16_t min = 0;
  float min_value = 0;
  float inverse = 0;  // 0 when the scale is 0: every code is then 0
  bool fits = false;  // false: not finite, or outside fp16

  // Codes can only come out above the greatest where the rounding of the scale to fp16 is coarse: a
  // normal scale is at most 2^-11 of itself too small, which 255 steps turn into an eighth of a
  // step.
  __device__ __forceinline__ bool needs_clamp() const { return scale < 0x0400u && scale != 0; }
};

__device__ __forceinline__ bool half_is_finite(std::uint16_t half) {
  return (half & 0x7c00u) != 0x7c00u;
}
__device__ __forceinline__ float inverse_of(std::uint16_t scale) {
  return scale == 0 ? 0.0f : __frcp_rn(__half2float(__ushort_as_half(scale)));
}

__device__ __forceinline__ GroupScale make_group_scale(float low, float high, float levels) {
  GroupScale group;
  group.min = __half_as_ushort(__float2half_rn(low));
  if (group.min == 0x8000u) group.min = 0;
  group.min_value = __half2float(__ushort_as_half(group.min));
  const float step = __fdiv_rn(__fsub_rn(high, group.min_value), levels);
  group.scale = __half_as_ushort(__float2half_rn(step));
  group.fits = half_is_finite(group.min) && half_is_finite(group.scale);
  if ((group.scale & 0x8000u) != 0) group.scale = 0;  // the rounded min lies above the max
  group.inverse = inverse_of(group.scale);
  return group;
}

// 1.5 * 2^23: what is added to it is rounded to an integer, ties to even, and stands in its low
// bits.
inline constexpr float kRounder = 12582912.0f;
inline constexpr std::uint32_t kRounderBits = 0x4b400000u;

// kRounderBits + the code. The rounded min is at most half the smallest scale above a value, so
// that the product is at least -0.5, which rounds to 0: no clamp below.
template <bool kClamp>
__device__ __forceinline__ std::uint32_t biased_code(float value, float min_value, float inverse,
                                                     float levels) {
  float scaled = __fmul_rn(__fsub_rn(value, min_value), inverse);
  if constexpr (kClamp) scaled = fminf(scaled, levels);
  return __float_as_uint(__fadd_rn(scaled, kRounder));
}

}  // namespace kvferry::kernels
