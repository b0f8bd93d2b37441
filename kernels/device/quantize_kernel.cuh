#pragma once

#include <cstdint>

#include "kernels/device/quantize_keys.cuh"
#include "kernels/device/quantize_values.cuh"
#include "kernels/device/write_block.cuh"
#include "kernels/quantize_block.h"

// One CTA makes one side of one block: a warp per 32 channels of K, or one per 16 tokens of V.
// Where a warp's codes are whole slabs of the block, it writes them as soon as it has them; scales,
// mins and codes of other forms are put together in shared memory first.
namespace kvferry::kernels {

// What a CTA of grid (kv_heads * its sides, items) works on.
struct BlockTask {
  QuantizeItem item;
  int head;

  __device__ __forceinline__ Rows rows(bool is_v) const {
    return Rows((is_v ? item.v : item.k) + head * item.head_stride, item.token_stride,
                item.first_row, item.ring_rows);
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

// False: there is no such item.
__device__ __forceinline__ bool load_task(const QuantizeParams& params, int head, BlockTask& task) {
  if (params.item_count != nullptr && blockIdx.y >= __ldg(params.item_count)) return false;
  task.item = params.items[blockIdx.y];
  task.head = head;
  return true;
}

extern __shared__ uint4 block_memory[];

template <int kHeadDim, int kGroupChannels>
struct QuantizeShape {
  static constexpr int kKeyWarps = kHeadDim / 32, kValueWarps = format::kTiles;
  static constexpr int kWarps = kKeyWarps > kValueWarps ? kKeyWarps : kValueWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCtasPerSm = kHeadDim == 256 ? 2 : 6;
  // What the lanes of a warp tell each other: (min, inverse scale) of 32 channels of K, or of 16
  // tokens and their groups of V.
  static constexpr int kGroups = kHeadDim / kGroupChannels;
  static constexpr int kExchange = kGroups < 2 ? 32 : 16 * kGroups;
};

// Returns whether all codes have gone to the page, else they are in shared memory. The values are
// asked for first of all.
//   later(): what can be done while they are on their way. make(): the task.
//   kAnyWidth: false: there are 2 and 4 bits only, which need fewer registers.
template <class Task, bool kAnyWidth, class Later, class Make>
__device__ __forceinline__ bool quantize_side(int bits, const Rows& rows, int warp, int lane,
                                              const Later& later, const Make& make,
                                              RunCheck& check) {
  typename Task::Values x;
  Task::load(rows, warp, lane, x);
  later();
  const Task task = make();
  if (bits == 2) return task.template quantize<2>(x, check);
  if (!kAnyWidth || bits == 4) return task.template quantize<4>(x, check);
  if constexpr (kAnyWidth) {
    if (bits == 1) return task.template quantize<1>(x, check);
    if (bits == 3) return task.template quantize<3>(x, check);
    return task.template quantize<8>(x, check);
  }
}

// K or V of a block: where its parts lie, in the page and in shared memory.
struct Side {
  std::byte* memory;  // shared: codes, scales, mins, `bytes` in all
  int scale, min, bytes;
  CodeSlabs slabs;
  std::uint32_t after_units;  // of the chunk, after it

  template <int kHeadDim, int kGroupChannels>
  __device__ __forceinline__ void find(const QuantizeParams& params, const BlockTask& task,
                                       bool is_v) {
    // GK as a constant: it would be divided by.
    const int k_bits = task.item.k_bits, v_bits = task.item.v_bits;
    const format::ScalarLayout at =
        params.k_group_tokens == format::kTokens
            ? format::ScalarBlock(kHeadDim, k_bits, v_bits, format::kTokens, kGroupChannels)
            : format::ScalarBlock(kHeadDim, k_bits, v_bits, 32, kGroupChannels);
    const int begin = is_v ? at.v_codes : at.k_codes, end = is_v ? at.bytes : at.v_codes;
    memory = reinterpret_cast<std::byte*>(block_memory);
    scale = (is_v ? at.v_scale : at.k_scale) - begin;
    min = (is_v ? at.v_min : at.k_min) - begin;
    bytes = end - begin;
    slabs = {task.item.page + std::int64_t{task.head} * at.bytes + begin, params.tables,
             scale / kCheckSlabBytes, bytes - scale};
    const int after = (params.kv_heads - task.head) * at.bytes - end;
    after_units = task.item.after_units + static_cast<unsigned>(after) / kCheckUnitBytes;
  }
  __device__ __forceinline__ std::uint32_t* words() const {
    return reinterpret_cast<std::uint32_t*>(memory);
  }
  __device__ __forceinline__ std::uint16_t* scales() const {
    return reinterpret_cast<std::uint16_t*>(memory + scale);
  }
  __device__ __forceinline__ std::uint16_t* mins() const {
    return reinterpret_cast<std::uint16_t*>(memory + min);
  }
};

// Brings the values of a side that a later CTA will make into the L2, so that memory is busy while
// this one computes: half as many ahead as run at a time. Called by one warp.
template <int kHeadDim>
__device__ __forceinline__ void prefetch_later(const QuantizeParams& params, int head, bool is_v,
                                               int lane) {
  const unsigned at_item = blockIdx.y + params.items_ahead;
  if (params.items_ahead == 0 || at_item >= gridDim.y) return;
  const BlockTask task = {params.items[at_item], head};
  const Rows rows = task.rows(is_v);
  constexpr int kRowBytes = 2 * kHeadDim, kLine = 128;
#if __CUDA_ARCH__ >= 900
  if (rows.stride == kRowBytes && rows.wrap >= format::kTokens) {
    if (lane == 0) prefetch_l2_bulk(rows.first, format::kTokens * kRowBytes);
    return;
  }
#endif
  constexpr int kLines = (kRowBytes + kLine - 1) / kLine;
#pragma unroll 1
  for (int i = lane; i < format::kTokens * kLines; i += 32) {
    prefetch_l2(reinterpret_cast<const std::byte*>(rows.at(i / kLines)) + i % kLines * kLine);
  }
}

template <codec::Raw16 kType, int kHeadDim, int kGroupChannels, bool kAnyWidth>
__global__ void __launch_bounds__(QuantizeShape<kHeadDim, kGroupChannels>::kThreads,
                                  QuantizeShape<kHeadDim, kGroupChannels>::kCtasPerSm)
    quantize_scalar_kernel(const __grid_constant__ QuantizeParams params) {
  using Shape = QuantizeShape<kHeadDim, kGroupChannels>;
  const int head = blockIdx.x / 2;
  const bool is_v = blockIdx.x % 2 != 0;
  BlockTask task;
  if (!load_task(params, head, task)) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto later = [&] {
    if (warp == 0) prefetch_later<kHeadDim>(params, head, is_v, lane);
  };
  __shared__ float2 exchange[Shape::kWarps][Shape::kExchange];
  const int bits = is_v ? task.item.v_bits : task.item.k_bits;
  RunCheck check;
  Side side;
  bool put = true;  // false: the codes are in shared memory
  if (is_v) {
    using Task = ValueTask<kType, kHeadDim, kGroupChannels>;
    const Rows rows = task.rows(true);
    const auto make = [&] {
      side.find<kHeadDim, kGroupChannels>(params, task, true);
      return Task{rows,           warp,          lane,
                  side.words(),   side.scales(), side.mins(),
                  exchange[warp], side.slabs,    task.faults(params, true)};
    };
    if (warp < Shape::kValueWarps) {
      put = quantize_side<Task, kAnyWidth>(bits, rows, warp, lane, later, make, check);
    }
  } else {
    using Task = KeyTask<kType, kHeadDim>;
    const Rows rows = task.rows(false);
    const auto make = [&] {
      side.find<kHeadDim, kGroupChannels>(params, task, false);
      return Task{rows,         warp,
                  lane,         params.k_group_tokens,
                  side.words(), side.scales(),
                  side.mins(),  exchange[warp],
                  side.slabs,   task.faults(params, false)};
    };
    if (warp < Shape::kKeyWarps && Task::makes(bits, warp)) {
      put = quantize_side<Task, kAnyWidth>(bits, rows, warp, lane, later, make, check);
    }
  }
  if (kAnyWidth || Shape::kKeyWarps != Shape::kValueWarps) put = __syncthreads_and(put);
  // Again, for the warps that had nothing to make.
  side.find<kHeadDim, kGroupChannels>(params, task, is_v);
  std::uint32_t* const residue = params.residues + task.item.chunk;
  if (put) {
    finish_codes<Shape::kWarps>(side.slabs, check, side.memory + side.scale, side.after_units,
                                residue);
    return;
  }
  __syncthreads();
  write_block<Shape::kWarps>(
      [&](int offset) { return *reinterpret_cast<const uint4*>(side.memory + offset); }, side.bytes,
      side.slabs.out, params.tables, side.after_units, residue);
}

}  // namespace kvferry::kernels
