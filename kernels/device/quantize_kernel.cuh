#pragma once

#include <cstdint>

#include "kernels/device/quantize_keys.cuh"
#include "kernels/device/quantize_values.cuh"
#include "kernels/device/write_block.cuh"
#include "kernels/quantize_block.h"

// One CTA makes one block: a warp per 32 channels of K and one per 16 tokens of V fill it in shared
// memory, then all warps write it out and check it.
namespace kvferry::kernels {

// What a CTA of grid (kv_heads, items) works on.
struct BlockTask {
  QuantizeItem item;
  int head;

  __device__ __forceinline__ Rows rows(bool is_v) const {
    return {(is_v ? item.v : item.k) + head * item.head_stride, item.token_stride, item.first_row,
            item.ring_rows};
  }
  __device__ __forceinline__ FaultSink faults(const QuantizeParams& params, bool is_v) const {
    return {reinterpret_cast<unsigned long long*>(params.first_fault),
            FaultKey({.item = blockIdx.y, .head = head, .is_v = is_v})};
  }
  template <int kWarps, class Load>
  __device__ __forceinline__ void write(const QuantizeParams& params, int bytes, Load load) const {
    const auto after =
        static_cast<std::uint32_t>(params.kv_heads - 1 - head) * bytes / kCheckUnitBytes;
    write_block<kWarps>(load, bytes, item.page + std::int64_t{head} * bytes, params.tables,
                        item.after_units + after, params.residues + item.chunk);
  }
};

__device__ __forceinline__ bool load_task(const QuantizeParams& params, BlockTask& task) {
  if (params.item_count != nullptr && blockIdx.y >= __ldg(params.item_count)) return false;
  task.item = params.items[blockIdx.y];
  task.head = blockIdx.x;
  return true;
}

extern __shared__ uint4 block_memory[];

template <int kHeadDim>
struct QuantizeShape {
  static constexpr int kKeyWarps = kHeadDim / 32;
  static constexpr int kWarps = kKeyWarps + format::kTiles;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCtasPerSm = kHeadDim == 256 ? 1 : 3;
};

// Brings the values of a block that a later CTA will make into the L2, so that memory is busy while
// this one computes: about as many blocks ahead as run at a time.
template <int kHeadDim>
__device__ __forceinline__ void prefetch_later(const QuantizeParams& params) {
  constexpr int kRowBytes = 2 * kHeadDim, kLine = 128;
  const unsigned later = blockIdx.y * gridDim.x + blockIdx.x + params.blocks_ahead;
  const unsigned at_item = later / gridDim.x;
  if (params.blocks_ahead == 0 || at_item >= gridDim.y) return;
  BlockTask task;
  task.item = params.items[at_item];
  task.head = static_cast<int>(later % gridDim.x);
  constexpr int kLines = (kRowBytes + kLine - 1) / kLine;
  for (int i = threadIdx.x; i < 2 * format::kTokens * kLines; i += blockDim.x) {
    const bool is_v = i >= format::kTokens * kLines;
    const int token = i / kLines % format::kTokens;
    prefetch_l2(reinterpret_cast<const std::byte*>(task.rows(is_v).at(token)) + i % kLines * kLine);
  }
}

template <codec::Raw16 kType, int kHeadDim, int kGroupChannels>
__global__ void __launch_bounds__(QuantizeShape<kHeadDim>::kThreads,
                                  QuantizeShape<kHeadDim>::kCtasPerSm)
    quantize_scalar_kernel(const __grid_constant__ QuantizeParams params) {
  using Shape = QuantizeShape<kHeadDim>;
  BlockTask task;
  if (!load_task(params, task)) return;
  prefetch_later<kHeadDim>(params);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int k_bits = task.item.k_bits, v_bits = task.item.v_bits;
  const format::ScalarLayout at =
      format::ScalarBlock(kHeadDim, k_bits, v_bits, params.k_group_tokens, kGroupChannels);
  auto* block = reinterpret_cast<std::byte*>(block_memory);
  const auto halves = [&](int offset) { return reinterpret_cast<std::uint16_t*>(block + offset); };
  const auto words = [&](int offset) { return reinterpret_cast<std::uint32_t*>(block + offset); };
  if (warp < Shape::kKeyWarps) {
    const KeyTask<kType, kHeadDim> keys = {task.rows(false),
                                           warp,
                                           lane,
                                           params.k_group_tokens,
                                           words(at.k_codes),
                                           halves(at.k_scale),
                                           halves(at.k_min),
                                           task.faults(params, false)};
    switch (k_bits) {
      case 1:
        keys.template quantize<1>();
        break;
      case 2:
        keys.template quantize<2>();
        break;
      case 3:
        keys.template quantize<3>();
        break;
      case 4:
        keys.template quantize<4>();
        break;
      default:
        keys.template quantize<8>();
        break;
    }
  } else {
    const ValueTask<kType, kHeadDim, kGroupChannels> values = {
        task.rows(true),  warp - Shape::kKeyWarps,  lane, words(at.v_codes), halves(at.v_scale),
        halves(at.v_min), task.faults(params, true)};
    switch (v_bits) {
      case 1:
        values.template quantize<1>();
        break;
      case 2:
        values.template quantize<2>();
        break;
      case 3:
        values.template quantize<3>();
        break;
      case 4:
        values.template quantize<4>();
        break;
      default:
        values.template quantize<8>();
        break;
    }
  }
  __syncthreads();
  task.template write<Shape::kWarps>(params, at.bytes, [&](int offset) {
    return *reinterpret_cast<const uint4*>(block + offset);
  });
}

}  // namespace kvferry::kernels
