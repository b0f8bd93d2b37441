#pragma once

#include <cuda_runtime.h>
#include <math_constants.h>

#include <cmath>
#include <cstdint>

#include "kernels/attention_args.h"
#include "kernels/device/block_ring.cuh"
#include "kernels/device/cluster.cuh"
#include "kernels/device/mma.cuh"

// What becomes of the results of a piece's warps: merged by the thread block, then by the last of
// those that share rows, through memory, or by the cluster, through shared memory. The unit of a
// merge is what one warp does at once: some channels of one row, from all that have a part of it.
namespace kvferry::kernels {

template <int kHeadDimension>
struct MergeUnit {
  static constexpr int kHeadDim = kHeadDimension;
  // Channels of a lane.
  static constexpr int kWidth = kHeadDim % 128 == 0 ? 4 : kHeadDim % 64 == 0 ? 2 : 1;
  static constexpr int kChannels = 32 * kWidth, kOfRow = kHeadDim / kChannels;
  static_assert(kOfRow <= kPartialTops);

  int row, part;  // of the piece, of the row
  __device__ __forceinline__ explicit MergeUnit(int number)
      : row(number / kOfRow), part(number % kOfRow) {}
  // Of this lane's first channel.
  __device__ __forceinline__ int channel() const {
    return part * kChannels + static_cast<int>(threadIdx.x) % 32 * kWidth;
  }
};

template <int kWidth>
struct __align__(4 * kWidth) Floats {
  float at[kWidth];
};

// The sums of p times value of some channels of a row, with the reference and the sum of p. Of
// nothing: no reference.
template <int kWidth>
struct MergedRow {
  Floats<kWidth> values = {};
  float top = -INFINITY, total = 0;
};

__device__ __forceinline__ bool is_absent(float x) { return __float_as_uint(x) == kAbsent; }

// Merges what `count` sources have of a unit. By all lanes of a warp. Sources:
//   load(source): this lane's channels. load_top(source): reference and sum of p.
//   kOnTheirWay: what is_absent() is loaded until it is there.
template <int kWidth, int kAtOnce, class Sources>
__device__ __forceinline__ MergedRow<kWidth> merge_unit(int count, const Sources& sources) {
  const int lane = threadIdx.x % 32;
  MergedRow<kWidth> merged;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kAtOnce) {
    const int here = min(kAtOnce, count - begin);
    Floats<kWidth> values[kAtOnce] = {};
    float2 top = {-INFINITY, 0};
    unsigned missing = (1u << here) - 1;
    bool no_top = lane % kAtOnce < here, all_there = true;
    do {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if ((missing >> i & 1) != 0) values[i] = sources.load(begin + i);
      }
      if (no_top) top = sources.load_top(begin + lane % kAtOnce);
      if constexpr (Sources::kOnTheirWay) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (!is_absent(values[i].at[0])) missing &= ~(1u << i);
        }
        no_top = is_absent(top.x);
        all_there = __all_sync(~0u, missing == 0 && !no_top);
      }
    } while (!all_there);
    // One reference for all: what is added one after the other waits for every one in turn.
    float most = top.x;
#pragma unroll
    for (int other = 1; other < kAtOnce; other *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, other));
    }
    most = fmaxf(most, merged.top);
    if (most == -INFINITY) continue;
    const float share = exp2_fast(top.x - most), before = exp2_fast(merged.top - most);
    float total = share * top.y;
#pragma unroll
    for (int other = 1; other < kAtOnce; other *= 2) {
      total += __shfl_xor_sync(~0u, total, other);
    }
    merged.top = most;
    merged.total = merged.total * before + total;
#pragma unroll
    for (float& x : merged.values.at) x *= before;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float share_of = __shfl_sync(~0u, share, i);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) merged.values.at[c] += share_of * values[i].at[c];
    }
  }
  return merged;
}

// Index in q and out of a row of the piece.
__device__ __forceinline__ long long query_row(const AttentionArgs& args,
                                               const AttentionPiece& piece, int column) {
  const int row = piece.row_begin + column, token = row / args.group;
  const long long q_heads = static_cast<long long>(args.kv_heads) * args.group;
  return (static_cast<long long>(piece.sequence) * args.query_tokens + token) * q_heads +
         piece.kv_head * args.group + row % args.group;
}

// row: query_row's of the unit.
template <class Unit>
__device__ __forceinline__ void write_result(const AttentionArgs& args, long long row,
                                             const Unit& unit,
                                             const MergedRow<Unit::kWidth>& merged) {
  constexpr int kWidth = Unit::kWidth;
  const float r = __fdividef(1.0f, merged.total);
  std::uint16_t* out = args.out + row * Unit::kHeadDim + unit.channel();
  const auto pair = [&](int c) {
    const float low = merged.values.at[c] * r, high = merged.values.at[min(c + 1, kWidth - 1)] * r;
    return args.bf16 ? bf162_pack(low, high) : half2_pack(low, high);
  };
  if constexpr (kWidth == 1) {
    *out = static_cast<std::uint16_t>(pair(0));
  } else if constexpr (kWidth == 2) {
    *reinterpret_cast<std::uint32_t*>(out) = pair(0);
  } else {
    *reinterpret_cast<uint2*>(out) = {pair(0), pair(2)};
  }
  if (unit.channel() == 0 && args.log_sum != nullptr) {
    args.log_sum[row] = (merged.top + __log2f(merged.total)) * 0.693147180559945f;
  }
}

// Of the warps of a thread block, each with its result at the beginning of its slots.
template <class Shared, class Unit>
struct SumsOfWarps {
  static constexpr bool kOnTheirWay = false;
  const char* shared;
  Unit unit;

  __device__ __forceinline__ auto load(int warp) const {
    const auto* sums = reinterpret_cast<const float*>(shared + warp * Shared::kWarpBytes);
    return *reinterpret_cast<const Floats<Unit::kWidth>*>(sums + unit.row * Unit::kHeadDim +
                                                          unit.channel());
  }
  __device__ __forceinline__ float2 load_top(int warp) const {
    return reinterpret_cast<const float2*>(shared + Shared::kTops)[warp * kColumns + unit.row];
  }
};

// Loads and stores of up to 16 bytes through memory, all of them or none: single-copy atomic.
__device__ __forceinline__ Floats<1> load_whole(const Floats<1>* from) {
  Floats<1> x;
  asm volatile("ld.relaxed.gpu.global.f32 %0,[%1];" : "=f"(x.at[0]) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ Floats<2> load_whole(const Floats<2>* from) {
  Floats<2> x;
  asm volatile("{.reg .b64 x; ld.relaxed.gpu.global.b64 x,[%2]; mov.b64 {%0,%1},x;}"
               : "=f"(x.at[0]), "=f"(x.at[1])
               : "l"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ Floats<4> load_whole(const Floats<4>* from) {
  Floats<4> x;
  asm volatile(
      "{.reg .b128 x; .reg .b64 a,b; ld.relaxed.gpu.global.b128 x,[%4]; mov.b128 {a,b},x;\n"
      "mov.b64 {%0,%1},a; mov.b64 {%2,%3},b;}"
      : "=f"(x.at[0]), "=f"(x.at[1]), "=f"(x.at[2]), "=f"(x.at[3])
      : "l"(from)
      : "memory");
  return x;
}
__device__ __forceinline__ void store_whole(Floats<1>* to, const Floats<1>& x) {
  asm volatile("st.relaxed.gpu.global.f32 [%0],%1;" ::"l"(to), "f"(x.at[0]) : "memory");
}
__device__ __forceinline__ void store_whole(Floats<2>* to, const Floats<2>& x) {
  asm volatile("{.reg .b64 x; mov.b64 x,{%1,%2}; st.relaxed.gpu.global.b64 [%0],x;}" ::"l"(to),
               "f"(x.at[0]), "f"(x.at[1])
               : "memory");
}
__device__ __forceinline__ void store_whole(Floats<4>* to, const Floats<4>& x) {
  asm volatile(
      "{.reg .b128 x; .reg .b64 a,b; mov.b64 a,{%1,%2}; mov.b64 b,{%3,%4}; mov.b128 x,{a,b};\n"
      "st.relaxed.gpu.global.b128 [%0],x;}" ::"l"(to),
      "f"(x.at[0]), "f"(x.at[1]), "f"(x.at[2]), "f"(x.at[3])
      : "memory");
}

// Of the pieces of the plan, through memory. What is there says by itself that it is: so it takes
// one way there and one back, without a counter or a fence between them. One warp reads it, and
// leaves it absent for the next launch.
template <class Unit>
struct SumsOfPieces {
  static constexpr bool kOnTheirWay = true;
  Floats<Unit::kWidth>* sums;
  Floats<2>* tops;

  // first: the partial result that is source 0.
  __device__ __forceinline__ SumsOfPieces(const AttentionArgs& args, int first, const Unit& unit) {
    const long long row = static_cast<long long>(first) * kColumns + unit.row;
    sums = reinterpret_cast<Floats<Unit::kWidth>*>(args.partial_sums + row * Unit::kHeadDim +
                                                   unit.channel());
    tops = reinterpret_cast<Floats<2>*>(args.partial_tops + row * kPartialTops + unit.part);
  }
  __device__ __forceinline__ auto load(int piece) const {
    return load_whole(sums + piece * (kColumns * Unit::kHeadDim / Unit::kWidth));
  }
  __device__ __forceinline__ float2 load_top(int piece) const {
    const Floats<2> top = load_whole(tops + piece * (kColumns * kPartialTops));
    return {top.at[0], top.at[1]};
  }
  __device__ __forceinline__ void store(int piece, Floats<Unit::kWidth> values, float top,
                                        float total) const {
    store_whole(sums + piece * (kColumns * Unit::kHeadDim / Unit::kWidth), values);
    if (threadIdx.x % 32 == 0) {
      store_whole(tops + piece * (kColumns * kPartialTops), Floats<2>{{top, total}});
    }
  }
  __device__ __forceinline__ void store(int piece, const MergedRow<Unit::kWidth>& merged) const {
    Floats<Unit::kWidth> values = merged.values;
    values.at[0] = present(values.at[0]);
    store(piece, values, present(merged.top), merged.total);
  }
  __device__ __forceinline__ void clear(int piece) const {
    const float absent = __uint_as_float(kAbsent);
    Floats<Unit::kWidth> values;
    for (float& x : values.at) x = absent;
    store(piece, values, absent, absent);
  }

 private:
  // A NaN of arithmetic must not look like what is absent.
  static __device__ __forceinline__ float present(float x) { return isnan(x) ? CUDART_NAN_F : x; }
};

// Of the thread blocks of a cluster: what they have left in their shared memory.
template <class Shared, class Unit>
struct SumsOfCluster {
  static constexpr bool kOnTheirWay = false;
  float* sums;
  float2* top;

  __device__ __forceinline__ SumsOfCluster(char* shared, const Unit& unit)
      : sums(reinterpret_cast<float*>(shared + Shared::kSums) + unit.row * Unit::kHeadDim +
             unit.channel()),
        top(reinterpret_cast<float2*>(shared + Shared::kReferences) + unit.row) {}
  __device__ __forceinline__ auto load(int rank) const {
    Floats<Unit::kWidth> x;
    load_shared_of(rank, shared_address(sums), x.at);
    return x;
  }
  __device__ __forceinline__ float2 load_top(int rank) const {
    float x[2];
    load_shared_of(rank, shared_address(top), x);
    return {x[0], x[1]};
  }
  // In this thread block's.
  __device__ __forceinline__ void store(const Unit& unit,
                                        const MergedRow<Unit::kWidth>& merged) const {
    *reinterpret_cast<Floats<Unit::kWidth>*>(sums) = merged.values;
    if (unit.channel() == 0) *top = {merged.top, merged.total};
  }
};

// Everything that a thread block does when all its warps have left their results.
template <class Codes, class Shared>
__device__ __forceinline__ void merge_piece(const AttentionArgs& args, const AttentionPiece& piece,
                                            char* shared, int warp) {
  using Unit = MergeUnit<Codes::kHeadDim>;
  constexpr int kWidth = Unit::kWidth, kAtOnce = Shared::kWarps <= 8 ? 8 : 16;
  const bool clustered = kHasClusters && args.clustered;
  const int units = piece.rows * Unit::kOfRow;
#pragma unroll 1
  for (int number = warp; number < units; number += Shared::kWarps) {
    const Unit unit(number);
    const auto merged =
        merge_unit<kWidth, kAtOnce>(Shared::kWarps, SumsOfWarps<Shared, Unit>{shared, unit});
    if (clustered) {
      SumsOfCluster<Shared, Unit>(shared, unit).store(unit, merged);
    } else if (piece.partials == 1) {
      write_result(args, query_row(args, piece, unit.row), unit, merged);
    } else {
      SumsOfPieces<Unit>(args, piece.partial, unit).store(0, merged);
    }
  }
  if (clustered) {
    cluster_arrive();
    cluster_wait();
#pragma unroll 1
    for (int number = cluster_rank() + warp * kClusterBlocks; number < units;
         number += Shared::kWarps * kClusterBlocks) {
      const Unit unit(number);
      const long long row = query_row(args, piece, unit.row);
      write_result(args, row, unit,
                   merge_unit<kWidth, kClusterBlocks>(kClusterBlocks,
                                                      SumsOfCluster<Shared, Unit>(shared, unit)));
    }
    cluster_arrive();  // this thread block reads no more of the others
    cluster_wait();    // nor they of it: it may end
  } else if (piece.merges != 0) {
#pragma unroll 1
    for (int number = warp; number < units; number += Shared::kWarps) {
      const Unit unit(number);
      const SumsOfPieces<Unit> pieces(args, piece.first_partial, unit);
      const long long row = query_row(args, piece, unit.row);
      write_result(args, row, unit, merge_unit<kWidth, kAtOnce>(piece.partials, pieces));
#pragma unroll 4
      for (int i = 0; i < piece.partials; ++i) pieces.clear(i);
    }
  }
}

}  // namespace kvferry::kernels
