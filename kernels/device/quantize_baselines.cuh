#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/device/quantize_kernel.cuh"

// Blocks of kInt8, kFp8 and kRaw16: the baselines that KVB is compared with.
namespace kvferry::kernels {

inline constexpr int kBaselineWarps = 8;
inline constexpr int kBaselineThreads = 32 * kBaselineWarps;

// The values of 16 bytes that are not finite, reported by their token and first channel.
template <codec::Raw16 kType>
__device__ __forceinline__ void report_piece(const uint4& x, const FaultSink& faults, int token,
                                             int channel) {
  const std::uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const std::uint32_t value = pairs[c / 2] >> (16 * (c % 2));
    if ((value & Pair<kType>::kInfinity) == Pair<kType>::kInfinity) {
      faults.value(token, channel + c);
    }
  }
}

template <codec::Raw16 kType>
__device__ __forceinline__ float largest_of(const uint4& x) {
  using P = Pair<kType>;
  constexpr std::uint32_t kMagnitude = 0x7fff7fffu;
  const std::uint32_t top = P::max(P::max(x.x & kMagnitude, x.y & kMagnitude),
                                   P::max(x.z & kMagnitude, x.w & kMagnitude));
  return P::low(P::max(top, top >> 16 | top << 16));
}

// Kinds with a byte per code: what the largest code is worth, and the code of value / scale.
struct Int8Maker {
  static constexpr float kLargest = 127.0f;
  static __device__ __forceinline__ std::uint32_t code(float scaled) {
    const float clamped = fminf(fmaxf(scaled, -kLargest), kLargest);
    return __float_as_uint(__fadd_rn(clamped, kRounder)) & 0xffu;
  }
};
struct Fp8Maker {
  static constexpr float kLargest = 448.0f;
  // A zero has no sign.
  static __device__ __forceinline__ std::uint32_t code(float scaled) {
    const std::uint32_t code = __nv_cvt_float_to_fp8(scaled, __NV_SATFINITE, __NV_E4M3);
    return (code & 0x7fu) == 0 ? 0 : code;
  }
};

// A row of a token is shared by kLanes lanes with 8 channels each.
template <class Maker, codec::Raw16 kType, int kHeadDim>
__device__ __forceinline__ void quantize_bytes_side(const Rows& rows, const FaultSink& faults,
                                                    std::byte* codes, std::uint16_t* scales) {
  using P = Pair<kType>;
  constexpr int kLanes = kHeadDim == 256 ? 32 : kHeadDim == 64 ? 8 : 16;
  constexpr int kStep = kBaselineThreads / kLanes;
  const int at = threadIdx.x % kLanes, channel = 8 * at;
  const bool active = channel < kHeadDim;
  for (int token = threadIdx.x / kLanes; token < format::kTokens; token += kStep) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (active) x = load_once16(rows.at(token) + channel);
    float largest = largest_of<kType>(x);
    // NaN is passed on as infinity.
    if (!isfinite(largest)) {
      report_piece<kType>(x, faults, token, channel);
      largest = __int_as_float(0x7f800000);
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    }
    const std::uint16_t scale =
        __half_as_ushort(__float2half_rn(__fdiv_rn(largest, Maker::kLargest)));
    if (at == 0) {
      scales[token] = scale;
      if (!half_is_finite(scale)) faults.scale(token, 0);
    }
    if (!active) continue;
    const float inverse = inverse_of(scale);
    const std::uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
    std::uint32_t words[2] = {};
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float value = c % 2 == 0 ? P::low(pairs[c / 2]) : P::high(pairs[c / 2]);
      words[c / 4] |= Maker::code(__fmul_rn(value, inverse)) << (8 * (c % 4));
    }
    *reinterpret_cast<uint2*>(codes + token * kHeadDim + channel) = make_uint2(words[0], words[1]);
  }
}

template <class Maker, codec::Raw16 kType, int kHeadDim>
__global__ void __launch_bounds__(kBaselineThreads)
    quantize_bytes_kernel(const __grid_constant__ QuantizeParams params) {
  BlockTask task;
  if (!load_task(params, blockIdx.x, task)) return;
  constexpr format::TokenScaleLayout kAt = format::Int8Block(kHeadDim);
  auto* block = reinterpret_cast<std::byte*>(block_memory);
  quantize_bytes_side<Maker, kType, kHeadDim>(
      task.rows(false), task.faults(params, false), block + kAt.k_codes,
      reinterpret_cast<std::uint16_t*>(block + kAt.k_scale));
  quantize_bytes_side<Maker, kType, kHeadDim>(
      task.rows(true), task.faults(params, true), block + kAt.v_codes,
      reinterpret_cast<std::uint16_t*>(block + kAt.v_scale));
  __syncthreads();
  task.template write<kBaselineWarps>(params, kAt.bytes, [&](int offset) {
    return *reinterpret_cast<const uint4*>(block + offset);
  });
}

template <codec::Raw16 kType, int kHeadDim>
__global__ void __launch_bounds__(kBaselineThreads)
    quantize_raw16_kernel(const __grid_constant__ QuantizeParams params) {
  BlockTask task;
  if (!load_task(params, blockIdx.x, task)) return;
  constexpr format::Raw16Layout kAt = format::Raw16Block(kHeadDim);
  const Rows k = task.rows(false), v = task.rows(true);
  task.template write<kBaselineWarps>(params, kAt.bytes, [&](int offset) {
    const bool is_v = offset >= kAt.v;
    const int value = (offset - (is_v ? kAt.v : 0)) / 2;
    const int token = value / kHeadDim, channel = value % kHeadDim;
    const uint4 x = load_once16((is_v ? v : k).at(token) + channel);
    if (!isfinite(largest_of<kType>(x))) {
      report_piece<kType>(x, task.faults(params, is_v), token, channel);
    }
    return x;
  });
}

}  // namespace kvferry::kernels
