#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/device/mma.cuh"
#include "kernels/device/softmax_state.cuh"

namespace kvferry::kernels {

// Sinks and window of one sequence and KV head as one list of 16-bit tokens; the window is a ring.
struct RawTokens {
  const std::uint16_t* sinks;  // K of the head; V is v_offset elements further
  const std::uint16_t* window;
  long long sinks_v, window_v;  // from K to V, in elements
  int sink_tokens, tokens;      // sinks; sinks and window
  int window_begin, window_capacity;

  // Row of a token; what is beyond the end reads the last one, and its score is masked.
  template <int kHeadDim>
  __device__ __forceinline__ const std::uint16_t* row(int token, bool v) const {
    token = min(token, tokens - 1);
    if (token < sink_tokens) return sinks + (v ? sinks_v : 0) + token * kHeadDim;
    int slot = window_begin + token - sink_tokens;
    if (slot >= window_capacity) slot -= window_capacity;
    return window + (v ? window_v : 0) + static_cast<long long>(slot) * kHeadDim;
  }
};

// Four channels of a row, asked for here and not where they are used.
__device__ __forceinline__ uint2 load_now(const std::uint16_t* from) {
  uint2 x;
  asm volatile("ld.global.v2.u32 {%0,%1},[%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
  return x;
}

// Adds 16 tokens of 16 bits to `state`, whose sums are of values here. Straight from memory into
// fragments: with the channels permuted as in a block every lane finds 16 bytes of K and 8 of V.
//   row(token, v): K or V of a token of the tile, 0..15.
//   masked(row_of_tile, column): whether column 2j + column does not see that token.
//   q_plain: as QueryLoad lays it out. ones_row: the row of `totals` that holds the sum of p.
template <int kHeadDim, int kColumnsOfRow, class Row, class Masked>
__device__ __forceinline__ void attend_raw_tile(const Row& row, const Masked& masked, bool bf16,
                                                const float (&unit)[2], const char* q_plain,
                                                int ones_row, int lane,
                                                SoftmaxState<kHeadDim / 16>& state) {
  constexpr int kGroupsOfW = kHeadDim / 32;
  const int g = lane / 4, j = lane % 4;
  uint4 k[2][kGroupsOfW];
  uint2 v[4][kGroupsOfW];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::uint16_t* at = row(g + 8 * r, false) + 8 * j;
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) k[r][w] = *reinterpret_cast<const uint4*>(at + 32 * w);
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    const std::uint16_t* at = row(2 * j + t % 2 + t / 2 * 8, true) + 4 * g;
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) v[t][w] = load_now(at + 32 * w);
  }
  if (bf16) {
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint4& x = k[r][w];
        x = {half2_from_bf162(x.x), half2_from_bf162(x.y), half2_from_bf162(x.z),
             half2_from_bf162(x.w)};
      }
    }
  }
  float scores[1][4] = {};
  if constexpr (kColumnsOfRow == 1) {
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) {
      const uint4 q = *reinterpret_cast<const uint4*>(q_plain + w * 512);
      mma_f16(scores[0], k[0][w].x, k[1][w].x, k[0][w].y, k[1][w].y, q.x, q.y);
      mma_f16(scores[0], k[0][w].z, k[1][w].z, k[0][w].w, k[1][w].w, q.z, q.w);
    }
  } else {
    float odd[4] = {};  // pairs of channels, in the second column
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) {
      const uint2 q = *reinterpret_cast<const uint2*>(q_plain + w * 256);
      mma_f16(scores[0], k[0][w].x, k[1][w].x, k[0][w].z, k[1][w].z, q.x, q.y);
      mma_f16(odd, k[0][w].y, k[1][w].y, k[0][w].w, k[1][w].w, q.x, q.y);
    }
    scores[0][1] = scores[0][0] += odd[1];
    scores[0][3] = scores[0][2] += odd[3];
  }
  if (bf16) {
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        v[t][w] = {half2_from_bf162(v[t][w].x), half2_from_bf162(v[t][w].y)};
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (masked(g + i / 2 * 8, i % 2)) scores[0][i] = -INFINITY;
  }
  const float no_offset[1][2] = {{0, 0}};
  std::uint32_t p[2];
  state.template exponentiate<1, 1>(scores, unit, no_offset, p);
  float sum[4] = {};
  const std::uint32_t ones = g == ones_row ? 0x3c003c00u : 0;
  mma_f16(sum, ones, 0, ones, 0, p[0], p[1]);
  state.totals[0] += sum[0];
  state.totals[1] += sum[1];
#pragma unroll
  for (int w = 0; w < kGroupsOfW; ++w) {
    mma_f16(state.sums[2 * w], __byte_perm(v[0][w].x, v[1][w].x, 0x5410),
            __byte_perm(v[0][w].x, v[1][w].x, 0x7632), __byte_perm(v[2][w].x, v[3][w].x, 0x5410),
            __byte_perm(v[2][w].x, v[3][w].x, 0x7632), p[0], p[1]);
    mma_f16(state.sums[2 * w + 1], __byte_perm(v[0][w].y, v[1][w].y, 0x5410),
            __byte_perm(v[0][w].y, v[1][w].y, 0x7632), __byte_perm(v[2][w].y, v[3][w].y, 0x5410),
            __byte_perm(v[2][w].y, v[3][w].y, 0x7632), p[0], p[1]);
  }
}

}  // namespace kvferry::kernels
