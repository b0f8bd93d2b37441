#pragma once

#include <cstdint>

#include "kernels/device/mma.cuh"
#include "kernels/device/softmax_state.cuh"

namespace kvferry::kernels {

// A running softmax of base 2 of one query row, in columns 2j and 2j+1, whose sums over values are
// of integers: x = p * (V's scale of the token) in steps of 1/254, as two signed bytes, of which
// column 2j has the whole part and column 2j+1 the rest. `top` is a reference near the greatest
// score and the size of its token's scale: it rises when an x leaves its bytes, and falls when x
// have been small for a while and the sums have room, so that what lies far below an early peak
// keeps its digits. All that is summed so far is scaled with it.
template <int kSums>
struct IntegerSums {
  static constexpr float kNothing = -1e30f;
  static constexpr std::uint32_t kLimit = 0x57f057f0u;    // 127, two halves: of x
  static constexpr float kAfterRaise = 6.0f;              // x of the greatest is then 2^6
  static constexpr float kLargestP = 15.0f;               // and its p at most 2^15
  static constexpr std::uint32_t kRounder = 0x66006600u;  // 1536: + n has n in its low byte
  static constexpr std::uint32_t kSteps = 0x5bf05bf0u;    // 254
  static constexpr float kStep = 1.0f / 254;
  // Blocks between two looks at the size of x and sums. As many add less than 2^25 to a sum, x of
  // 127 and bytes of 255, and a look leaves none above 2^29.
  static constexpr int kLook = 16;
  static constexpr float kLargestSum = 29.0f, kFastestFall = 8.0f;  // log2

  float top = kNothing;
  float total = 0;  // by g: p times V's mins, and p alone
  int sums[kSums][4] = {};
  int blocks = 0;
  std::uint32_t largest = 0;  // x since the last look, two halves
  // Added to x before it is rounded, of each of a tile's tokens another part of a step: so that
  // many tokens with an x below half a step are not all rounded to nothing.
  std::uint32_t dither;

  __device__ __forceinline__ IntegerSums(SoftmaxRange, int lane) {
    const auto part = [lane](int r) {
      const std::uint32_t rank = __brev(static_cast<std::uint32_t>(lane / 4 * 2 + r)) >> 28;
      return (static_cast<float>(rank) - 7.5f) / 16 * kStep;
    };
    dither = half2_pack(part(0), part(1));
  }

  // scores[tile][0], [2] times `unit` plus offset[tile * kRows / 4]: the scores of tokens g and g+8
  // in base 2. scale: V's, of the same tokens. Gives p of these tokens, and x as B fragments:
  // bytes 0 and 1 of tokens 2j and 2j+8, 2 and 3 of 2j+1 and 2j+9. All lanes of the warp.
  template <int kRows>
  __device__ __forceinline__ void exponentiate(float (&scores)[4][4], float unit,
                                               const float (&offset)[kRows],
                                               const std::uint32_t (&scale)[4],
                                               std::uint32_t (&p)[4], std::uint32_t (&bytes)[4]) {
    if (__builtin_expect(blocks++ % kLook == kLook - 1, 0)) look();
    std::uint32_t x[4];
#pragma unroll 1
    for (int attempt = 0; attempt < 2; ++attempt) {  // NaN ends here too
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const float c = offset[tile * kRows / 4] - top;
        p[tile] = half2_pack(exp2_fast(fmaf(scores[tile][0], unit, c)),
                             exp2_fast(fmaf(scores[tile][2], unit, c)));
        x[tile] = half2_fma(p[tile], scale[tile], dither);
      }
      const std::uint32_t most = half2_max(half2_max(x[0], x[1]), half2_max(x[2], x[3]));
      const bool beyond = !half2_below(most, kLimit);
      if (attempt == 1 || __builtin_expect(!__any_sync(~0u, beyond), 1)) {
        largest = half2_max(largest, most);
        break;
      }
      raise_top(scores, unit, offset, scale);
    }
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const std::uint32_t whole = half2_add(x[tile], kRounder);
      const std::uint32_t rest = half2_add(x[tile], half2_sub(kRounder, whole));
      const std::uint32_t steps = half2_fma(rest, kSteps, kRounder);
      bytes[tile] = transpose_8x8(__byte_perm(whole, steps, 0x6420));
      p[tile] = transpose_8x8(p[tile]);
    }
  }

 private:
  __device__ __forceinline__ void rescale(float factor) {
    total *= factor;
#pragma unroll
    for (int m = 0; m < kSums; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[m][i] = __float2int_rn(__int2float_rn(sums[m][i]) * factor);
      }
    }
  }

  __device__ __forceinline__ void look() {
    const float2 both = float2_from_half2(largest);
    float most = fmaxf(both.x, both.y);
    int sum = 1;
#pragma unroll
    for (int m = 0; m < kSums; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum = max(sum, abs(sums[m][i]));
    }
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
      sum = max(sum, __shfl_xor_sync(~0u, sum, lanes));
    }
    const float room =
        fminf(kAfterRaise - __log2f(most), kLargestSum - __log2f(__int2float_rn(sum)));
    const float fall = room < 0 || room >= 2 ? floorf(fminf(room, kFastestFall)) : 0.0f;
    top -= fall;
    rescale(exp2_fast(fall));
    largest = 0;
  }

  template <int kRows>
  __device__ __forceinline__ void raise_top(float (&scores)[4][4], float unit,
                                            const float (&offset)[kRows],
                                            const std::uint32_t (&scale)[4]) {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {  // keeps the maximum out of the common path
      asm volatile("" : "+f"(scores[tile][0]), "+f"(scores[tile][2]));
    }
    float most = kNothing;
    std::uint32_t scales = 0;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const float score = fmaxf(scores[tile][0], scores[tile][2]);
      most = fmaxf(most, fmaf(score, unit, offset[tile * kRows / 4]));
      scales = half2_max(scales, scale[tile]);
    }
    const float2 both = float2_from_half2(scales);
    float largest = fmaxf(both.x, both.y);
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    }
    const float raised = fmaxf(top, most + fmaxf(__log2f(largest) - kAfterRaise, -kLargestP));
    rescale(exp2_fast(top - raised));
    top = raised;
  }
};

}  // namespace kvferry::kernels
