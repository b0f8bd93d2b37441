#pragma once

#include <cstdint>

#include "kernels/device/quantize_kernel.cuh"

// Blocks of kCoupled: the nearest centroid of every group of channels, as kvcodec/cpu finds it, sum
// by sum. Four threads share a token, each with every fourth centroid; the codebook of one group at
// a time stands in shared memory.
namespace kvferry::kernels {

inline constexpr int kCoupledThreads = 4 * format::kTokens;
inline constexpr int kCoupledWarps = kCoupledThreads / 32;
inline constexpr int kMostHalf = 128;  // of head_dim

struct CoupledShared {
  float cos[kMostHalf], sin[kMostHalf];  // of the block's first token
};

// Bytes before the block in shared memory: angles, then a codebook in fp32.
inline int coupled_shared_bytes(const codec::Coupling& coupling) {
  return static_cast<int>(sizeof(CoupledShared)) + 4 * coupling.channels * coupling.centroids();
}

// ORs a code of up to 16 bits into a region that was zeroed.
__device__ __forceinline__ void put_row_code(std::uint32_t* words, int bit, int bits,
                                             std::uint32_t code) {
  atomicOr(words + bit / 32, code << (bit % 32));
  if (bit % 32 + bits > 32) atomicOr(words + bit / 32 + 1, code >> (32 - bit % 32));
}

template <codec::Raw16 kType>
struct CoupledSide {
  Rows rows;
  FaultSink faults;
  const float* cos;  // of the token, [head_dim / 2]; null: values do not turn
  const float* sin;
  const CoupledShared* first;
  int half;

  __device__ __forceinline__ float value(int token, int channel) const {
    const std::uint32_t raw = rows.at(token)[channel];
    return Pair<kType>::low(raw);
  }
  __device__ __forceinline__ bool is_finite(int token, int channel) const {
    const std::uint32_t raw = rows.at(token)[channel];
    return (raw & Pair<kType>::kInfinity) != Pair<kType>::kInfinity;
  }
  // A value of the token, a key to what it was before RoPE. Every operation is rounded on its own.
  __device__ __forceinline__ float turned_back(int token, int channel) const {
    if (cos == nullptr) return value(token, channel);
    const int i = channel % half;
    const float c = __fsub_rn(__fmul_rn(first->cos[i], cos[i]), __fmul_rn(first->sin[i], sin[i]));
    const float s = __fadd_rn(__fmul_rn(first->sin[i], cos[i]), __fmul_rn(first->cos[i], sin[i]));
    const float low = value(token, i), high = value(token, i + half);
    return channel < half ? __fadd_rn(__fmul_rn(low, c), __fmul_rn(high, s))
                          : __fsub_rn(__fmul_rn(high, c), __fmul_rn(low, s));
  }
};

// The nearest of the centroids `quarter`, `quarter` + 4, ..., then of all of the four threads.
template <int kChannels>
__device__ __forceinline__ std::uint32_t nearest_centroid(const float (&x)[kChannels],
                                                          const float* book, int count,
                                                          int quarter) {
  float least = 0;
  int nearest = quarter;
  for (int code = quarter; code < count; code += 4) {
    float distance = 0;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const float step = __fsub_rn(x[i], book[code * kChannels + i]);
      distance = __fadd_rn(distance, __fmul_rn(step, step));
    }
    if (code == quarter || distance < least) least = distance, nearest = code;
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const float other = __shfl_xor_sync(kAllLanes, least, lanes);
    const int other_nearest = __shfl_xor_sync(kAllLanes, nearest, lanes);
    if (other < least || (other == least && other_nearest < nearest)) {
      least = other, nearest = other_nearest;
    }
  }
  return static_cast<std::uint32_t>(nearest);
}

template <codec::Raw16 kType, int kChannels>
__global__ void __launch_bounds__(kCoupledThreads)
    quantize_coupled_kernel(const __grid_constant__ QuantizeParams params) {
  BlockTask task;
  if (!load_task(params, blockIdx.x, task)) return;
  const int d = params.head_dim, half = d / 2, bits = params.coupled.coupling.bits;
  const int count = 1 << bits, groups = d / kChannels;
  const format::CoupledLayout layout = format::CoupledBlock(d, kChannels, bits);
  const CoupledTables& tables = params.coupled.tables;
  auto* block = reinterpret_cast<std::byte*>(block_memory);
  auto* first = reinterpret_cast<CoupledShared*>(block + layout.bytes);
  auto* book = reinterpret_cast<float*>(first + 1);
  for (int i = threadIdx.x; i < layout.bytes / 16; i += kCoupledThreads) {
    block_memory[i] = make_uint4(0, 0, 0, 0);
  }
  for (int i = threadIdx.x; i < half; i += kCoupledThreads) {
    const double angle =
        static_cast<double>(task.item.token) * static_cast<double>(tables.frequencies[i]);
    first->cos[i] = static_cast<float>(cos(angle));
    first->sin[i] = static_cast<float>(sin(angle));
  }
  const int token = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const std::uint16_t* books = tables.centroids + tables.layer_values * task.item.layer +
                               2 * tables.side_values * (params.coupled.kv_head_begin + task.head);
  for (int side = 0; side < 2; ++side) {
    const bool is_v = side == 1;
    const CoupledSide<kType> values = {task.rows(is_v),
                                       task.faults(params, is_v),
                                       is_v ? nullptr : tables.token_cos + token * half,
                                       tables.token_sin + token * half,
                                       first,
                                       half};
    auto* words = reinterpret_cast<std::uint32_t*>(block + (is_v ? layout.v_codes : 0));
    for (int group = 0; group < groups; ++group) {
      __syncthreads();  // the codebook before this one has been read, the angles are there
      const auto* from = reinterpret_cast<const __half2*>(
          books + side * tables.side_values + static_cast<std::int64_t>(group) * count * kChannels);
      for (int i = threadIdx.x; i < count * kChannels / 2; i += kCoupledThreads) {
        const float2 pair = __half22float2(from[i]);
        book[2 * i] = pair.x;
        book[2 * i + 1] = pair.y;
      }
      __syncthreads();
      float x[kChannels];
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        const int channel = group * kChannels + i;
        x[i] = values.turned_back(token, channel);
        if (quarter == 0 && !values.is_finite(token, channel)) values.faults.value(token, channel);
      }
      const std::uint32_t code = nearest_centroid<kChannels>(x, book, count, quarter);
      if (quarter == 0) {
        put_row_code(words, token * layout.row_bytes * 8 + group * bits, bits, code);
      }
    }
  }
  __syncthreads();
  task.template write<kCoupledWarps>(params, layout.bytes, [&](int offset) {
    return *reinterpret_cast<const uint4*>(block + offset);
  });
}

}  // namespace kvferry::kernels
