#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/attention_args.h"
#include "kernels/device/block_ring.cuh"
#include "kernels/device/cluster.cuh"
#include "kernels/device/mma.cuh"

// What becomes of the results of a piece's warps: merged by the thread block, then by the last of
// those that share rows, through memory, or by the cluster, through shared memory.
namespace kvferry::kernels {

// Index in q and out of a row of the piece.
__device__ __forceinline__ long long query_row(const AttentionArgs& args,
                                               const AttentionPiece& piece, int column) {
  const int row = piece.row_begin + column, token = row / args.group;
  const long long q_heads = static_cast<long long>(args.kv_heads) * args.group;
  return (static_cast<long long>(piece.sequence) * args.query_tokens + token) * q_heads +
         piece.kv_head * args.group + row % args.group;
}

// A row of results, or of partial ones: of four channels the sum of p times value, and with it the
// reference and the sum of p.
struct Merged {
  float4 value = {0, 0, 0, 0};
  float top = -INFINITY, total = 0;

  // Adds `count` others; `top` of nothing is -INFINITY, and a merge of nothing with nothing stays
  // that. All at once: what is added one after the other waits for every reference in turn.
  template <int kMost>
  __device__ __forceinline__ void add(const float4 (&values)[kMost], const float2 (&tops)[kMost],
                                      int count) {
    float most = top;
#pragma unroll
    for (int i = 0; i < kMost; ++i) most = i < count ? fmaxf(most, tops[i].x) : most;
    if (most == -INFINITY) return;
    const float a = exp2_fast(top - most);
    value = {value.x * a, value.y * a, value.z * a, value.w * a};
    total *= a;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const float b = i < count ? exp2_fast(tops[i].x - most) : 0.0f;
      value = {value.x + values[i].x * b, value.y + values[i].y * b, value.z + values[i].z * b,
               value.w + values[i].w * b};
      total += tops[i].y * b;
    }
    top = most;
  }
};

template <int kHeadDim>
__device__ __forceinline__ void write_result(const AttentionArgs& args, const AttentionPiece& piece,
                                             int column, int quad, const Merged& merged) {
  const long long row = query_row(args, piece, column);
  const float r = 1.0f / merged.total;
  const float4 o = {merged.value.x * r, merged.value.y * r, merged.value.z * r, merged.value.w * r};
  const uint2 bits = args.bf16 ? uint2{bf162_pack(o.x, o.y), bf162_pack(o.z, o.w)}
                               : uint2{half2_pack(o.x, o.y), half2_pack(o.z, o.w)};
  *reinterpret_cast<uint2*>(args.out + row * kHeadDim + quad * 4) = bits;
  if (quad == 0 && args.log_sum != nullptr) {
    args.log_sum[row] = (merged.top + log2f(merged.total)) * 0.693147180559945f;
  }
}

// Merges what `sources` warps or thread blocks have for the rows of a piece. Groups of threads take
// every other source, as many groups as there are threads for.
//   load(source, item, value): the four channels `item` of a source; returns {top, total} of its
//   row. finish(column, quad, merged). shared: scratch that no source's load reads after the
//   barrier here.
template <int kHeadDim, int kThreads, int kAtOnce, class Load, class Finish>
__device__ __forceinline__ void merge_sources(int rows, int sources, char* shared, const Load& load,
                                              const Finish& finish) {
  constexpr int kQuads = kHeadDim / 4;
  const int items = rows * kQuads, groups = max(1, kThreads / items);
  const int thread = threadIdx.x, group = groups == 1 ? 0 : thread / items;
  auto* values = reinterpret_cast<float4*>(shared);  // [groups][items]
  auto* tops = reinterpret_cast<float2*>(values + kThreads);
#pragma unroll 1
  for (int item = thread - group * items; item < items; item += kThreads) {
    Merged merged;
    float2 top[kAtOnce];
    float4 value[kAtOnce];
#pragma unroll 1
    for (int begin = group; begin < sources; begin += kAtOnce * groups) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        top[i] = load(min(begin + i * groups, sources - 1), item, value[i]);
      }
      merged.add(value, top, (sources - begin + groups - 1) / groups);
    }
    if (groups > 1) {
      __syncthreads();
      if (group > 0 && group < groups) {
        values[thread] = merged.value;
        tops[thread] = {merged.top, merged.total};
      }
      __syncthreads();
      if (group > 0) return;
#pragma unroll 1
      for (int begin = 1; begin < groups; begin += kAtOnce) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int at = min(begin + i, groups - 1) * items + item;
          top[i] = tops[at];
          value[i] = values[at];
        }
        merged.add(value, top, groups - begin);
      }
    }
    finish(item / kQuads, item % kQuads, merged);
  }
}

// Merges what the thread blocks of a cluster have at Shared::kSums, each of them a slice of the
// channels of all rows. As many lanes as there are thread blocks share four channels.
template <class Codes, class Shared>
__device__ __forceinline__ void merge_cluster(const AttentionArgs& args,
                                              const AttentionPiece& piece, char* shared) {
  constexpr int kHeadDim = Codes::kHeadDim, kQuads = kHeadDim / 4, kThreads = Shared::kWarps * 32;
  static_assert(kQuads % kClusterBlocks == 0 && 32 % kClusterBlocks == 0);
  const int lanes = piece.rows * kQuads, first = cluster_rank() * (lanes / kClusterBlocks);
  const std::uint32_t sums = shared_address(shared + Shared::kSums);
  const std::uint32_t references = shared_address(shared + Shared::kReferences);
  cluster_arrive();
  cluster_wait();
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at / 32 * 32 < lanes; at += kThreads) {
    const int source = at % kClusterBlocks;
    const int item = first + min(at, lanes - 1) / kClusterBlocks, column = item / kQuads;
    const float2 reference = load_shared_of2(source, references + column * sizeof(float2));
    const float4 value = load_shared_of4(source, sums + item * sizeof(float4));
    float most = reference.x;
#pragma unroll
    for (int other = 1; other < kClusterBlocks; other *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, other));
    }
    const float share = most == -INFINITY ? 0.0f : exp2_fast(reference.x - most);
    float sum[5] = {value.x * share, value.y * share, value.z * share, value.w * share,
                    reference.y * share};
#pragma unroll
    for (int other = 1; other < kClusterBlocks; other *= 2) {
#pragma unroll
      for (float& one : sum) one += __shfl_xor_sync(~0u, one, other);
    }
    if (at >= lanes || source != 0) continue;
    write_result<kHeadDim>(args, piece, column, item % kQuads,
                           {{sum[0], sum[1], sum[2], sum[3]}, most, sum[4]});
  }
  cluster_arrive();  // this thread block reads no more of the others
  cluster_wait();    // nor they of it: it may end
}

}  // namespace kvferry::kernels
