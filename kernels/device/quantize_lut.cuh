#pragma once

#include <cstdint>

#include "kernels/device/lut_tables.cuh"
#include "kernels/device/quantize_baselines.cuh"

// Blocks of kLut: a scale per token and the nearest level per value, as kvcodec/cpu makes them, sum
// by sum. The codes of a row go to places all over the block: one at a time, in shared memory.
namespace kvferry::kernels {

// Root mean square of a row, of which each of kLanes lanes has 8 values; every lane gets it.
template <int kLanes, int kHeadDim>
__device__ __forceinline__ float rms_of(const float (&values)[8]) {
  float sums[8] = {}, squares[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) squares[c] = __fmul_rn(values[c], values[c]);
  for (int lane = 0; lane < kHeadDim / 8; ++lane) {  // in the order of channels
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      sums[c] = __fadd_rn(sums[c], __shfl_sync(kAllLanes, squares[c], lane, kLanes));
    }
  }
  const float even = __fadd_rn(__fadd_rn(sums[0], sums[4]), __fadd_rn(sums[2], sums[6]));
  const float odd = __fadd_rn(__fadd_rn(sums[1], sums[5]), __fadd_rn(sums[3], sums[7]));
  return __fsqrt_rn(__fdiv_rn(__fadd_rn(even, odd), static_cast<float>(kHeadDim)));
}

__device__ __forceinline__ std::uint32_t lut_code(const DeviceLut& lut, float scaled) {
  std::uint32_t code = 0;
  for (int i = 0; i < (1 << lut.bits) - 1; ++i) code += scaled > lut.middles[i] ? 1 : 0;
  return code;
}

// The words are zero before.
__device__ __forceinline__ void put_code(std::uint32_t* words, const format::CodePlace& place,
                                         int bits, std::uint32_t code) {
  if (place.spread == 0) {
    atomicOr(words + place.word, code << place.shift);
    return;
  }
  for (int i = 0; i < bits; ++i) {
    atomicOr(words + place.word + i * place.spread, (code >> i & 1u) << place.shift);
  }
}

template <codec::Raw16 kType, int kHeadDim>
__device__ __forceinline__ void quantize_lut_side(const Rows& rows, const FaultSink& faults,
                                                  const DeviceLut& lut, bool is_v,
                                                  std::uint32_t* words, std::uint16_t* scales) {
  using P = Pair<kType>;
  constexpr int kLanes = kHeadDim == 256 ? 32 : kHeadDim == 64 ? 8 : 16;
  constexpr int kStep = kBaselineThreads / kLanes;
  const int at = threadIdx.x % kLanes, channel = 8 * at;
  const bool active = channel < kHeadDim;
  for (int token = threadIdx.x / kLanes; token < format::kTokens; token += kStep) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (active) x = load_once16(rows.at(token) + channel);
    float unit = largest_of<kType>(x);
    const bool finite = isfinite(unit);
    if (!finite) {
      report_piece<kType>(x, faults, token, channel);
      unit = __int_as_float(0x7f800000);
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      unit = fmaxf(unit, __shfl_xor_sync(kAllLanes, unit, step));
    }
    const std::uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
    float values[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      values[c] = c % 2 == 0 ? P::low(pairs[c / 2]) : P::high(pairs[c / 2]);
    }
    if (lut.is_rms) {
      const float rms = rms_of<kLanes, kHeadDim>(values);
      if (isfinite(unit)) unit = rms;
    }
    const std::uint16_t scale = __half_as_ushort(__float2half_rn(unit));
    if (at == 0) {
      scales[is_v ? format::VScalePosition(token) : format::KScalePosition(token)] = scale;
      if (!half_is_finite(scale)) faults.scale(token, 0);
    }
    if (!active) continue;
    const float inverse = inverse_of(scale);
    for (int c = 0; c < 8; ++c) {
      const format::CodePlace place = is_v ? format::VPlace(lut.bits, kHeadDim, token, channel + c)
                                           : format::KPlace(lut.bits, kHeadDim, token, channel + c);
      put_code(words, place, lut.bits, lut_code(lut, __fmul_rn(values[c], inverse)));
    }
  }
}

template <codec::Raw16 kType, int kHeadDim>
__global__ void __launch_bounds__(kBaselineThreads)
    quantize_lut_kernel(const __grid_constant__ QuantizeParams params) {
  BlockTask task;
  if (!load_task(params, task)) return;
  const DeviceLut& lut = device_luts.of[static_cast<int>(params.table)];
  const format::TokenScaleLayout layout = format::LutBlock(kHeadDim, lut.bits);
  auto* block = reinterpret_cast<std::byte*>(block_memory);
  for (int i = threadIdx.x; i < layout.bytes / 16; i += kBaselineThreads) {
    block_memory[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  const auto words = [&](int offset) { return reinterpret_cast<std::uint32_t*>(block + offset); };
  const auto halves = [&](int offset) { return reinterpret_cast<std::uint16_t*>(block + offset); };
  quantize_lut_side<kType, kHeadDim>(task.rows(false), task.faults(params, false), lut, false,
                                     words(layout.k_codes), halves(layout.k_scale));
  quantize_lut_side<kType, kHeadDim>(task.rows(true), task.faults(params, true), lut, true,
                                     words(layout.v_codes), halves(layout.v_scale));
  __syncthreads();
  task.template write<kBaselineWarps>(params, layout.bytes, [&](int offset) {
    return *reinterpret_cast<const uint4*>(block + offset);
  });
}

}  // namespace kvferry::kernels
