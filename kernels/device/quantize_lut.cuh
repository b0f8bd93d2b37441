#pragma once

#include <cstdint>

#include "kernels/device/lut_tables.cuh"
#include "kernels/device/quantize_baselines.cuh"

// Blocks of kLut: of shifted keys a zero per channel, a scale per token and the nearest level per
// value, as kvcodec/cpu makes them, sum by sum. The codes of a row go to places all over the block:
// one at a time, in shared memory.
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

// Takes the zeros of eight channels off their values; returns the largest magnitude that is left.
__device__ __forceinline__ float take_zeros_off(float (&values)[8], const uint4& zeros) {
  using Halves = Pair<codec::Raw16::kFp16>;
  const std::uint32_t pairs[4] = {zeros.x, zeros.y, zeros.z, zeros.w};
  float largest = 0;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float zero = c % 2 == 0 ? Halves::low(pairs[c / 2]) : Halves::high(pairs[c / 2]);
    values[c] = __fsub_rn(values[c], zero);
    largest = fmaxf(largest, fabsf(values[c]));
  }
  return largest;
}

// The zeros of all channels of K, two to a thread. Returns whether this thread's fit fp16.
template <codec::Raw16 kType, int kHeadDim>
__device__ __forceinline__ bool make_key_zeros(const Rows& rows, const FaultSink& faults,
                                               std::uint16_t* zeros) {
  using P = Pair<kType>;
  static_assert(kHeadDim / 2 <= kBaselineThreads);
  const int channel = 2 * threadIdx.x;
  if (channel >= kHeadDim) return true;
  const auto load = [&](int token) {
    return __ldg(reinterpret_cast<const std::uint32_t*>(rows.at(token) + channel));
  };
  std::uint32_t low = load(0), high = low;
#pragma unroll 8
  for (int token = 1; token < format::kTokens; ++token) {
    const std::uint32_t pair = load(token);
    low = P::min(low, pair);
    high = P::max(high, pair);
  }
  const float middles[2] = {__fmul_rn(__fadd_rn(P::low(low), P::low(high)), 0.5f),
                            __fmul_rn(__fadd_rn(P::high(low), P::high(high)), 0.5f)};
  bool fit = true;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    std::uint16_t zero = __half_as_ushort(__float2half_rn(middles[c]));
    if (zero == 0x8000u) zero = 0;
    zeros[channel + c] = zero;
    if (half_is_finite(zero)) continue;
    faults.scale(0, channel + c);
    fit = false;
  }
  return fit;
}

// One side of a block in shared memory.
struct LutSide {
  Rows rows;
  FaultSink faults;
  bool is_v;
  std::uint32_t* words;  // zero before
  std::uint16_t* scales;
  const uint4* zeros = nullptr;  // of shifted keys, eight to a piece
  bool zeros_fit = true;         // else a zero is the fault, and no scale
};

template <codec::Raw16 kType, int kHeadDim>
__device__ __forceinline__ void quantize_lut_side(const LutSide& side, const DeviceLut& lut) {
  using P = Pair<kType>;
  constexpr int kLanes = kHeadDim == 256 ? 32 : kHeadDim == 64 ? 8 : 16;
  constexpr int kStep = kBaselineThreads / kLanes;
  const int at = threadIdx.x % kLanes, channel = 8 * at;
  const bool active = channel < kHeadDim;
  for (int token = threadIdx.x / kLanes; token < format::kTokens; token += kStep) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (active) x = load_once16(side.rows.at(token) + channel);
    float unit = largest_of<kType>(x);
    const bool finite = isfinite(unit);
    const std::uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
    float values[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      values[c] = c % 2 == 0 ? P::low(pairs[c / 2]) : P::high(pairs[c / 2]);
    }
    if (side.zeros != nullptr && active) unit = take_zeros_off(values, side.zeros[at]);
    if (!finite) {
      report_piece<kType>(x, side.faults, token, channel);
      unit = __int_as_float(0x7f800000);
    }
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      unit = fmaxf(unit, __shfl_xor_sync(kAllLanes, unit, step));
    }
    if (lut.is_rms) {
      const float rms = rms_of<kLanes, kHeadDim>(values);
      if (isfinite(unit)) unit = rms;
    }
    const std::uint16_t scale = __half_as_ushort(__float2half_rn(unit));
    if (at == 0) {
      side.scales[side.is_v ? format::VScalePosition(token) : format::KScalePosition(token)] =
          scale;
      if (!half_is_finite(scale) && side.zeros_fit) side.faults.scale(token, 0);
    }
    if (!active) continue;
    const float inverse = inverse_of(scale);
    for (int c = 0; c < 8; ++c) {
      const format::CodePlace place = side.is_v
                                          ? format::VPlace(lut.bits, kHeadDim, token, channel + c)
                                          : format::KPlace(lut.bits, kHeadDim, token, channel + c);
      put_code(side.words, place, lut.bits, lut_code(lut, __fmul_rn(values[c], inverse)));
    }
  }
}

template <codec::Raw16 kType, int kHeadDim>
__global__ void __launch_bounds__(kBaselineThreads)
    quantize_lut_kernel(const __grid_constant__ QuantizeParams params) {
  BlockTask task;
  if (!load_task(params, blockIdx.x, task)) return;
  const DeviceLut& lut = device_luts.of[static_cast<int>(params.table)];
  const format::LutLayout layout = format::LutBlock(kHeadDim, lut.bits, lut.shifted_keys);
  auto* block = reinterpret_cast<std::byte*>(block_memory);
  for (int i = threadIdx.x; i < layout.bytes / 16; i += kBaselineThreads) {
    block_memory[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  const auto words = [&](int offset) { return reinterpret_cast<std::uint32_t*>(block + offset); };
  const auto halves = [&](int offset) { return reinterpret_cast<std::uint16_t*>(block + offset); };
  LutSide k = {.rows = task.rows(false),
               .faults = task.faults(params, false),
               .is_v = false,
               .words = words(layout.k_codes),
               .scales = halves(layout.k_scale)};
  const LutSide v = {.rows = task.rows(true),
                     .faults = task.faults(params, true),
                     .is_v = true,
                     .words = words(layout.v_codes),
                     .scales = halves(layout.v_scale)};
  if (lut.shifted_keys) {
    k.zeros = reinterpret_cast<const uint4*>(block + layout.k_zero);
    k.zeros_fit =
        __syncthreads_and(make_key_zeros<kType, kHeadDim>(k.rows, k.faults, halves(layout.k_zero)));
  }
  quantize_lut_side<kType, kHeadDim>(k, lut);
  quantize_lut_side<kType, kHeadDim>(v, lut);
  __syncthreads();
  task.template write<kBaselineWarps>(params, layout.bytes, [&](int offset) {
    return *reinterpret_cast<const uint4*>(block + offset);
  });
}

}  // namespace kvferry::kernels
