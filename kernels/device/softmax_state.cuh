#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/device/mma.cuh"

namespace kvferry::kernels {

// How large p may become: p = 2^(score - top + headroom), and a half below `guard` for the sum of a
// lane's p. With kUsual a V scale below 255 cannot make an infinity of p * scale; where one does,
// the piece is done again with kLargeScales, which no fp16 scale can overflow.
struct SoftmaxRange {
  float headroom;
  std::uint32_t guard;  // two halves
};
inline constexpr SoftmaxRange kUsualRange = {4.0f, 0x5c005c00u};         // 16, 256
inline constexpr SoftmaxRange kLargeScalesRange = {-6.0f, 0x34003400u};  // 2^-6, 0.25

// A running softmax of base 2 over columns 2j and 2j+1, and the sums that belong to it. `top` is a
// reference near the maximum, moved only when the sum of a lane's p leaves the range; then
// everything summed so far is scaled.
template <int kSums>
struct SoftmaxState {
  static constexpr float kNothing = -1e30f;

  SoftmaxRange range;
  float top[2] = {kNothing, kNothing};
  float totals[2] = {0, 0};
  float sums[kSums][4] = {};

  __device__ __forceinline__ SoftmaxState(SoftmaxRange of, int) : range(of) {}

  // Of all lanes.
  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
#pragma unroll
    for (int m = 0; m < kSums; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) finite = finite && fabsf(sums[m][i]) < INFINITY;
    }
    return __all_sync(~0u, finite);
  }

  // p of kTiles tiles as B fragments. scores[tile] times `unit` plus offset[tile * kRows / kTiles],
  // per column, are the scores in base 2. All lanes of the warp.
  template <int kTiles, int kRows>
  __device__ __forceinline__ void exponentiate(float (&scores)[kTiles][4], const float (&unit)[2],
                                               const float (&offset)[kRows][2],
                                               std::uint32_t (&p)[2 * kTiles]) {
#pragma unroll 1
    for (int attempt = 0; attempt < 2; ++attempt) {  // NaN ends here too
      std::uint32_t sum = 0;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int row = tile * kRows / kTiles;
        const float c0 = offset[row][0] - top[0] + range.headroom;
        const float c1 = offset[row][1] - top[1] + range.headroom;
        p[2 * tile] = half2_pack(exp2_fast(fmaf(scores[tile][0], unit[0], c0)),
                                 exp2_fast(fmaf(scores[tile][1], unit[1], c1)));
        p[2 * tile + 1] = half2_pack(exp2_fast(fmaf(scores[tile][2], unit[0], c0)),
                                     exp2_fast(fmaf(scores[tile][3], unit[1], c1)));
        const std::uint32_t both = half2_add(p[2 * tile], p[2 * tile + 1]);
        sum = tile == 0 ? both : half2_add(sum, both);
      }
      const bool beyond = !half2_below(sum, range.guard);
      if (attempt == 1 || __builtin_expect(!__any_sync(~0u, beyond), 1)) break;
      raise_top(scores, unit, offset);
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) p[i] = transpose_8x8(p[i]);
  }

 private:
  template <int kTiles, int kRows>
  __device__ __forceinline__ void raise_top(float (&scores)[kTiles][4], const float (&unit)[2],
                                            const float (&offset)[kRows][2]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {  // keeps the maximum out of the common path
      asm volatile(""
                   : "+f"(scores[tile][0]), "+f"(scores[tile][1]), "+f"(scores[tile][2]),
                     "+f"(scores[tile][3]));
    }
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float most = top[column];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float score = fmaxf(scores[tile][column], scores[tile][2 + column]);
        most = fmaxf(most, fmaf(score, unit[column], offset[tile * kRows / kTiles][column]));
      }
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
      }
      const float factor = exp2_fast(top[column] - most);
      top[column] = most;
      totals[column] *= factor;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sums[i][column] *= factor;
        sums[i][2 + column] *= factor;
      }
    }
  }
};

}  // namespace kvferry::kernels
