#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/device/block_ring.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kvcodec/format.h"

namespace kvferry::kernels {

// Attention on blocks of kind kInt8. A signed byte with its sign bit turned is code + 128, as a
// half the subnormal (code + 128) * 2^-24; 128 times the sum of what it is multiplied with is taken
// off again.
template <int kHeadDimension>
struct Int8Codes {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr codec::format::Int8Layout kLayout = codec::format::Int8Block(kHeadDim);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = 2;
  template <int kStages>
  using Ring = BlockRing<kStages, kBytes>;
  static constexpr int kSlotBytes = kBytes;
  static constexpr float kSubnormal = 16777216.0f;
  static constexpr float kScoreUnit = 1.0f;
  static constexpr int kOnesRow = 0;
  static constexpr float q_weight(int) { return 1.0f; }
  // Where a channel of q goes for codes: a word has channels 0..3 and is used as (0, 2) and (1, 3).
  static constexpr int q_place(int channel) {
    return channel / 4 * 4 + channel % 2 * 2 + channel % 4 / 2;
  }
  // -128 * p * scale, which is the same for all channels.
  static __device__ __forceinline__ int min_row(int) { return 1; }

  static __device__ __forceinline__ void attend(const char* block, const char* q_codes, const char*,
                                                const char*, bool, const float (&unit)[2],
                                                const float (&)[2], int lane,
                                                SoftmaxState<kHeadDim / 16>& state) {
    const int g = lane / 4, j = lane % 4;
    float scores[4][4] = {}, q_sum[4] = {};
#pragma unroll
    for (int w = 0; w < kHeadDim / 32; ++w) {
      const uint4 q = *reinterpret_cast<const uint4*>(q_codes + w * 512);
      mma_f16(q_sum, kOnes, kOnes, kOnes, kOnes, q.x, q.y);
      mma_f16(q_sum, kOnes, kOnes, kOnes, kOnes, q.z, q.w);
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const char* row = block + kLayout.k_codes + (tile * 16 + g) * kHeadDim + w * 32 + j * 8;
        const uint2 low = without_sign(*reinterpret_cast<const uint2*>(row));
        const uint2 high = without_sign(*reinterpret_cast<const uint2*>(row + 8 * kHeadDim));
        mma_f16(scores[tile], even(low.x), even(high.x), odd(low.x), odd(high.x), q.x, q.y);
        mma_f16(scores[tile], even(low.y), even(high.y), odd(low.y), odd(high.y), q.z, q.w);
      }
    }
    const auto* k_scale = reinterpret_cast<const __half*>(block + kLayout.k_scale);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scale = __half2float(k_scale[tile * 16 + g + i / 2 * 8]);
        scores[tile][i] = (scores[tile][i] * kSubnormal - 128.0f * q_sum[i % 2]) * scale;
      }
    }
    const float no_offset[1][2] = {{0, 0}};
    std::uint32_t p[8];
    state.template exponentiate<4, 1>(scores, unit, no_offset, p);

    float totals[4] = {};
    const std::uint32_t ones = g == 0 ? kOnes : 0, minus_128 = g == 1 ? 0xd800d800u : 0;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const auto* v_scale =
          reinterpret_cast<const std::uint32_t*>(block + kLayout.v_scale) + tile * 8;
      const std::uint32_t p0 = half2_mul(p[2 * tile], v_scale[j]);
      const std::uint32_t p1 = half2_mul(p[2 * tile + 1], v_scale[j + 4]);
      mma_f16(totals, ones, 0, ones, 0, p[2 * tile], p[2 * tile + 1]);
      mma_f16(totals, minus_128, 0, minus_128, 0, p0, p1);
      const char* rows = block + kLayout.v_codes + (tile * 16 + 2 * j) * kHeadDim + 4 * g;
#pragma unroll
      for (int w = 0; w < kHeadDim / 32; ++w) {
        std::uint32_t even_channels[2], odd_channels[2];  // of tokens 2j, 2j+1, and 8 further
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const char* at = rows + r * 8 * kHeadDim + w * 32;
          const std::uint32_t a = *reinterpret_cast<const std::uint32_t*>(at) ^ kSigns;
          const std::uint32_t b = *reinterpret_cast<const std::uint32_t*>(at + kHeadDim) ^ kSigns;
          even_channels[r] = __byte_perm(a, b, 0x6420);
          odd_channels[r] = __byte_perm(a, b, 0x7531);
        }
        mma_f16(state.sums[2 * w], even(even_channels[0]), even(odd_channels[0]),
                even(even_channels[1]), even(odd_channels[1]), p0, p1);
        mma_f16(state.sums[2 * w + 1], odd(even_channels[0]), odd(odd_channels[0]),
                odd(even_channels[1]), odd(odd_channels[1]), p0, p1);
      }
    }
    state.totals[0] += totals[0];
    state.totals[1] += totals[1];
  }
  static __device__ __forceinline__ void from_values(float (&sums)[kHeadDim / 16][4]) {
    multiply(sums, 1.0f / kSubnormal);
  }
  static __device__ __forceinline__ void to_values(float (&sums)[kHeadDim / 16][4]) {
    multiply(sums, kSubnormal);
  }

 private:
  static constexpr std::uint32_t kOnes = 0x3c003c00u, kSigns = 0x80808080u;

  static __device__ __forceinline__ uint2 without_sign(uint2 x) {
    return {x.x ^ kSigns, x.y ^ kSigns};
  }
  // Bytes 0 and 2, or 1 and 3, as halves.
  static __device__ __forceinline__ std::uint32_t even(std::uint32_t x) { return x & 0x00ff00ffu; }
  static __device__ __forceinline__ std::uint32_t odd(std::uint32_t x) {
    return __byte_perm(x, 0, 0x4341);
  }
  static __device__ __forceinline__ void multiply(float (&sums)[kHeadDim / 16][4], float by) {
#pragma unroll
    for (int m = 0; m < kHeadDim / 16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][i] *= by;
    }
  }
};

}  // namespace kvferry::kernels
