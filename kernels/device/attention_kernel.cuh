#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/attention_args.h"
#include "kernels/device/attention_merge.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/raw_tokens.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kernels/device/values.cuh"

// Decode attention (KVFerry's own; the split over the context and the merge are those of
// Flash-Decoding). A thread block takes one piece of the plan; each of its warps walks over every
// kWarps'th block with a ring and a softmax of its own, no barrier in the loop. Codes knows how a
// block is scored and weighed; nothing here depends on it.
namespace kvferry::kernels {

template <class Codes, int kWarpsOfBlock, int kRingStages>
struct AttentionShared {
  static constexpr int kWarps = kWarpsOfBlock, kStages = kRingStages;
  static constexpr int kHeadDim = Codes::kHeadDim;
  static constexpr int kMergeBytes = kColumns * kHeadDim * 4;
  // A warp's own slots are free after its last block and hold its result for the merge.
  static constexpr int kWarpBytes =
      kStages * Codes::kSlotBytes > kMergeBytes ? kStages* Codes::kBytes : kMergeBytes;
  static constexpr int kQueryBytes = kHeadDim / 32 * 512;
  static constexpr int kCodes = kWarps * kWarpBytes;   // q for codes
  static constexpr int kPlain = kCodes + kQueryBytes;  // q for values
  static constexpr int kOnes = kPlain + kQueryBytes / Codes::kColumnsOfRow;
  static constexpr int kUnit = kOnes + 64;  // behind 32 bytes of ones, 32 of zeros; float[kColumns]
  static constexpr int kTops = kUnit + kColumns * 4;           // float2[kWarps][kColumns]
  static constexpr int kFull = kTops + kWarps * kColumns * 8;  // mbarriers
  static constexpr int kTables = (kFull + kWarps * kStages * 8 + 127) / 128 * 128;
  // What the others of a cluster read of this thread block, where q and the ones have been.
  static constexpr int kSums = kCodes;       // float[rows][kHeadDim]
  static constexpr int kReferences = kOnes;  // float2[rows]: reference and sum of p
  static constexpr int kRows = kColumns / Codes::kColumnsOfRow;
  static_assert(kRows * kHeadDim * 4 <= kOnes - kCodes && kRows * 8 <= kUnit - kOnes);
  static constexpr int kBytes = kTables + Codes::kTableBytes;
};

template <int kHeadDim>
__device__ __forceinline__ RawTokens raw_tokens(const AttentionArgs& args,
                                                const AttentionPiece& piece) {
  const AttentionSequence sequence = args.sequences[piece.sequence];
  const long long sink_head = static_cast<long long>(args.sink_capacity) * kHeadDim;
  const long long window_head = static_cast<long long>(args.window_capacity) * kHeadDim;
  return {sequence.sinks + args.sink_offset + piece.kv_head * sink_head,
          sequence.window + args.window_offset + piece.kv_head * window_head,
          args.kv_heads * sink_head,
          args.kv_heads * window_head,
          sequence.sink_tokens,
          sequence.sink_tokens + sequence.window_tokens,
          sequence.window_begin,
          args.window_capacity};
}

// -126..127
__device__ __forceinline__ float power_of_two(int exponent) {
  return __int_as_float((exponent + 127) << 23);
}

// The rows of q that one warp brings into shared memory.
template <class Codes, int kWarps>
struct QueryLoad {
  static constexpr int kHeadDim = Codes::kHeadDim;
  static constexpr int kPairs = kHeadDim / 2, kLoads = (kPairs + 31) / 32;
  static constexpr int kRows = kColumns / Codes::kColumnsOfRow;
  static constexpr int kRowsOfWarp = (kRows + kWarps - 1) / kWarps;
  std::uint32_t pairs[kRowsOfWarp][kLoads];

  __device__ __forceinline__ void fetch(const AttentionArgs& args, const AttentionPiece& piece,
                                        int warp, int lane) {
#pragma unroll
    for (int c = 0; c < kRowsOfWarp; ++c) {
      const int row = warp + c * kWarps;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int pair = lane + 32 * i;
        pairs[c][i] = 0;
        if (row >= piece.rows || pair >= kPairs) continue;
        const std::uint16_t* q = args.q + query_row(args, piece, row) * kHeadDim;
        asm volatile("ld.global.u32 %0,[%1];" : "=r"(pairs[c][i]) : "l"(q + 2 * pair));
      }
    }
  }

  // As B fragments, [w][column][j][pair of channels]: each row divided by the power of two that
  // brings its largest value to 0.5..1, so that products with any scale stay in a half; once more
  // times Codes::q_weight. Where a row has two columns, q for values has its even pairs in the
  // first and its odd ones in the second.
  __device__ __forceinline__ void store(const AttentionArgs& args, char* q_codes, char* q_plain,
                                        float* unit, int warp, int lane) const {
#pragma unroll
    for (int c = 0; c < kRowsOfWarp; ++c) {
      const int row = warp + c * kWarps;
      if (row >= kRows) break;
      float2 x[kLoads];
      float most = 0;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const std::uint32_t bits = pairs[c][i];
        x[i] = args.bf16 ? float2{__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)}
                         : float2_from_half2(bits);
        most = fmaxf(most, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
      }
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
      }
      // most < 2^exponent, but of infinities and what lies at the ends of bf16.
      const int exponent = min(static_cast<int>(__float_as_uint(most) >> 23) - 126, 126);
      const float shrink = power_of_two(-exponent);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int pair = lane + 32 * i;
        if (pair >= kPairs) continue;
        const float low = x[i].x * shrink, high = x[i].y * shrink;
        const float weight = Codes::q_weight(pair % 4);
        const std::uint32_t plain = half2_pack(low, high);
        const std::uint32_t codes = half2_pack(low * weight, high * weight);
#pragma unroll
        for (int copy = 0; copy < Codes::kColumnsOfRow; ++copy) {
          const int column = row * Codes::kColumnsOfRow + copy;
          const int at = pair / 16 * 512 + column * 64 + pair % 16 * 4;
          if constexpr (Codes::kColumnsOfRow == 1) {
            *reinterpret_cast<std::uint32_t*>(q_plain + at) = plain;
          } else if (pair % 2 == copy) {
            *reinterpret_cast<std::uint32_t*>(q_plain + at / 16 * 8 + pair % 4 / 2 * 4) = plain;
          }
          if constexpr (Codes::q_place(1) == 1) {
            *reinterpret_cast<std::uint32_t*>(q_codes + at) = codes;
          } else {
            auto* lane_codes = reinterpret_cast<std::uint16_t*>(q_codes + at / 16 * 16);
            lane_codes[Codes::q_place(pair % 4 * 2)] = static_cast<std::uint16_t>(codes);
            lane_codes[Codes::q_place(pair % 4 * 2 + 1)] = static_cast<std::uint16_t>(codes >> 16);
          }
        }
      }
      if (lane < Codes::kColumnsOfRow) {
        unit[row * Codes::kColumnsOfRow + lane] = args.scale_log2 * power_of_two(exponent);
      }
    }
  }
};

// The blocks of one warp in a piece: every kWarps'th.
template <int kBlockBytes>
struct WarpBlocks {
  const unsigned long long* pages;
  unsigned head;  // of the KV head in a page, in bytes

  __device__ __forceinline__ WarpBlocks(const AttentionArgs& args, const AttentionPiece& piece)
      : pages(reinterpret_cast<const unsigned long long*>(args.pages) + piece.page_begin),
        head(static_cast<unsigned>(piece.kv_head) * kBlockBytes) {}
  // The page of a block, on its way: what makes an address of it waits for it.
  __device__ __forceinline__ unsigned long long page(int block) const {
    return __ldg(pages + block);
  }
  __device__ __forceinline__ const char* in(unsigned long long page) const {
    return reinterpret_cast<const char*>(page) + head;
  }
};

// Fills the ring of one warp.
template <class Codes, class Shared>
struct RingStart {
  static constexpr int kBlocks = Shared::kStages + 1;
  const char* first[kBlocks];  // null: there is no such block

  __device__ __forceinline__ RingStart(const AttentionArgs& args, const AttentionPiece& piece,
                                       int warp) {
    const WarpBlocks<Codes::kBytes> blocks(args, piece);
#pragma unroll
    for (int stage = 0; stage < kBlocks; ++stage) {
      const int block = warp + stage * Shared::kWarps;
      first[stage] = block < piece.blocks ? blocks.in(blocks.page(block)) : nullptr;
    }
  }
  // Stages [kBegin, kEnd).
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void load(typename Codes::template Ring<Shared::kStages>& ring,
                                       std::uint32_t loaded) const {
#pragma unroll
    for (int stage = kBegin; stage < kEnd; ++stage) {
      if (first[stage] != nullptr) {
        ring.load((loaded + stage) % Shared::kStages, first[stage]);
      } else {
        ring.skip();
      }
    }
  }
  // Brings the first block that does not fit into the ring into the L2 cache.
  __device__ __forceinline__ void prefetch(
      const typename Codes::template Ring<Shared::kStages>& ring) const {
    if (first[Shared::kStages] != nullptr) ring.prefetch(first[Shared::kStages]);
  }
};

// Of a warp's part of the 16-bit tokens: the tiles go to the warps that have the fewest blocks.
template <int kWarps>
__device__ __forceinline__ int first_tile(const AttentionPiece& piece, int warp) {
  return (warp + kWarps - piece.blocks % kWarps) % kWarps;
}

// Sends for the tiles that a warp reads when it has done its last blocks. Not earlier: they would
// not be in the cache any more.
template <int kHeadDim, int kWarps>
__device__ __forceinline__ void prefetch_tiles(const AttentionArgs& args,
                                               const AttentionPiece& piece, int warp, int lane) {
  int tile = first_tile<kWarps>(piece, warp);
  if (tile >= piece.tiles) return;
  const RawTokens raw = raw_tokens<kHeadDim>(args, piece);
#pragma unroll 1
  for (; tile < piece.tiles; tile += kWarps) {
    const int token = (piece.tile_begin + tile) * kTileTokens + lane % kTileTokens;
    const std::uint16_t* row = raw.row<kHeadDim>(token, lane >= kTileTokens);
#pragma unroll
    for (int at = 0; at < kHeadDim; at += 64) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row + at));
    }
  }
}

// Everything of a piece that one warp does after RingStart.
template <class Codes, class Shared>
__device__ __forceinline__ void attend_piece(const AttentionArgs& args, const AttentionPiece& piece,
                                             char* shared,
                                             typename Codes::template Ring<Shared::kStages>& ring,
                                             std::uint32_t& loaded, int warp, int lane,
                                             SoftmaxState<Codes::kHeadDim / 16>& state) {
  constexpr int kStages = Shared::kStages, kWarps = Shared::kWarps;
  const int j = lane % 4;
  const WarpBlocks<Codes::kBytes> blocks(args, piece);
  const char* q_plain = shared + Shared::kPlain + lane * 16 / Codes::kColumnsOfRow;
  const float* units = reinterpret_cast<const float*>(shared + Shared::kUnit);
  const float unit[2] = {units[2 * j], units[2 * j + 1]};
  const char* q_codes = shared + Shared::kCodes + lane * 16;
  const float code_unit[2] = {unit[0] * Codes::kScoreUnit, unit[1] * Codes::kScoreUnit};
  typename Codes::Running running(state.range, lane);
  int next = warp + kStages * kWarps;  // block to load next
  unsigned long long following = next < piece.blocks ? blocks.page(next) : 0;
#pragma unroll 1
  for (int i = warp; i < piece.blocks; i += kWarps, ++loaded) {
    const int stage = loaded % kStages;
    const char* at = ring.wait(stage, loaded / kStages % 2);
    Codes::attend(at, q_codes, q_plain, shared + Shared::kOnes, args.bf16, unit, code_unit, lane,
                  BlockSite{args, piece, shared + Shared::kTables, piece.kv_head, i}, running);
    __syncwarp();
    if (next < piece.blocks) {
      ring.load(stage, blocks.in(following));
      next += kWarps;
      following = next < piece.blocks ? blocks.page(next) : 0;
    } else {
      ring.skip();
      prefetch_tiles<Codes::kHeadDim, kWarps>(args, piece, warp, lane);
    }
  }
  Codes::to_values(running, state);

  if (first_tile<kWarps>(piece, warp) >= piece.tiles) return;
  const RawTokens raw = raw_tokens<Codes::kHeadDim>(args, piece);
  int limit[2];  // tokens of the raw list that a column sees
#pragma unroll
  for (int column = 0; column < 2; ++column) {
    const int row = min((2 * j + column) / Codes::kColumnsOfRow, piece.rows - 1);
    const int token = (piece.row_begin + row) / args.group;
    limit[column] = raw.tokens - (args.query_tokens - 1 - token);
  }
  for (int i = first_tile<kWarps>(piece, warp); i < piece.tiles; i += kWarps) {
    const int token = (piece.tile_begin + i) * kTileTokens;
    attend_raw_tile<Codes::kHeadDim, Codes::kColumnsOfRow>(
        [&](int row, bool v) { return raw.row<Codes::kHeadDim>(token + row, v); },
        [&](int row, int column) { return token + row >= limit[column]; }, args.bf16, unit, q_plain,
        Codes::kOnesRow, lane, state);
  }
}

// Small thread blocks that are launched early begin while others of the launch before still run.
// When it has ended all of them wait for q, and then work on their first blocks at the same time:
// memory would be idle until they need more. So they fill their rings before q, where a block of
// all warps is at most half of what a multiprocessor holds, and send for the next one after it.
template <class Codes, int kWarps, int kBlocksPerSm>
inline constexpr bool kFillsFirst =
    kBlocksPerSm > 1 && kBlocksPerSm* kWarps* Codes::kBytes <= 112 * 1024;

template <class Codes, int kWarps, int kStages, int kBlocksPerSm>
__global__ void __launch_bounds__(kWarps * 32, kBlocksPerSm)
    decode_attention_kernel(const __grid_constant__ AttentionArgs args) {
  using Shared = AttentionShared<Codes, kWarps, kStages>;
  constexpr int kHeadDim = Codes::kHeadDim, kQuads = kHeadDim / 4;
  extern __shared__ __align__(128) char shared[];
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0), lane = threadIdx.x % 32;
  let_next_kernel_start();
  const AttentionPiece piece = args.pieces[blockIdx.x];
  if (piece.rows == 0) {
    wait_for_previous_kernel();  // it is over before this one
    return;
  }

  constexpr bool kFillFirst = kFillsFirst<Codes, kWarps, kBlocksPerSm>;
  const RingStart<Codes, Shared> start(args, piece, warp);
  typename Codes::template Ring<kStages> ring(
      shared + warp * Shared::kWarpBytes,
      reinterpret_cast<std::uint64_t*>(shared + Shared::kFull) + warp * kStages, lane);
  std::uint32_t loaded = 0;  // blocks that went through the ring
  if (args.pages_settled) {
    start.template load<0, kFillFirst ? kStages : 1>(ring, loaded);
    Codes::template fill_tables<kWarps * 32>(shared + Shared::kTables, args, piece);
    wait_for_previous_kernel();
  }
  // Behind the first bulk copies q would wait for microseconds.
  QueryLoad<Codes, kWarps> queries;
  queries.fetch(args, piece, warp, lane);
  if (!args.pages_settled) {
    start.template load<0, 1>(ring, loaded);
    Codes::template fill_tables<kWarps * 32>(shared + Shared::kTables, args, piece);
  }
  queries.store(args, shared + Shared::kCodes, shared + Shared::kPlain,
                reinterpret_cast<float*>(shared + Shared::kUnit), warp, lane);
  if (threadIdx.x < 16) {
    reinterpret_cast<std::uint32_t*>(shared + Shared::kOnes)[threadIdx.x] =
        threadIdx.x < 8 ? 0x3c003c00u : 0;
  }
  __syncthreads();
  if (!kFillFirst || !args.pages_settled) {
    start.template load<1, kStages>(ring, loaded);  // behind the first blocks of all warps
  }
  // Others gain where it is the last one.
  if (kFillFirst ? args.pages_settled : piece.blocks <= (kStages + 1) * kWarps) {
    start.prefetch(ring);
  }

  SoftmaxState<kHeadDim / 16> state(kUsualRange, lane);
#pragma unroll 1
  for (int attempt = 0;; ++attempt) {
    attend_piece<Codes, Shared>(args, piece, shared, ring, loaded, warp, lane, state);
    if (!Codes::kScalesMeetP || attempt == 1 || state.is_finite()) break;
    state = SoftmaxState<kHeadDim / 16>(kLargeScalesRange, lane);
    RingStart<Codes, Shared>(args, piece, warp).template load<0, kStages>(ring, loaded);
  }

  // This warp's result, into its own slots.
  const int g = lane / 4, j = lane % 4;
  float2* tops = reinterpret_cast<float2*>(shared + Shared::kTops) + warp * kColumns;
  float4* mine = reinterpret_cast<float4*>(shared + warp * Shared::kWarpBytes);
  __syncwarp();
#pragma unroll
  for (int column = 0; column < 2 / Codes::kColumnsOfRow; ++column) {
    const int row = 2 / Codes::kColumnsOfRow * j + column;
    const float total = __shfl_sync(~0u, state.totals[column], Codes::kOnesRow * 4 + j);
    const bool nothing = state.top[column] == SoftmaxState<1>::kNothing;
    if (g == 0) {
      tops[row] = {nothing ? -INFINITY : state.top[column] - state.range.headroom, total};
    }
#pragma unroll
    for (int w = 0; w < kHeadDim / 32; ++w) {
      const float min = __shfl_sync(~0u, state.totals[column],
                                    Codes::min_row(w) < 0 ? 0 : Codes::min_row(w) * 4 + j);
      const float add = Codes::min_row(w) < 0 ? 0.0f : min;
      mine[row * kQuads + 8 * w + g] = {
          state.sums[2 * w][column] + add, state.sums[2 * w][2 + column] + add,
          state.sums[2 * w + 1][column] + add, state.sums[2 * w + 1][2 + column] + add};
    }
  }
  __syncthreads();
  merge_piece<Codes, Shared>(args, piece, shared, warp);
}

}  // namespace kvferry::kernels
