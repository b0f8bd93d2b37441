#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/device/attention_variant.cuh"
#include "kernels/device/block_ring.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/plain_codes.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kvcodec/format.h"

// Attention on blocks with a byte per code and a scale per token. A kind knows how two bytes of a
// word become halves, and what these have to be multiplied with; the rest is written once.
namespace kvferry::kernels {

// Kind kInt8. A signed byte with its sign bit turned is code + 128, as a half the subnormal
// (code + 128) * 2^-24; 128 times the sum of what it is multiplied with is taken off again.
struct Int8Bytes {
  static constexpr float kUnit = 16777216.0f;
  static constexpr float kOffset = 128.0f;
  static __device__ __forceinline__ std::uint32_t prepare(std::uint32_t x) {
    return x ^ 0x80808080u;
  }
  // Bytes 0 and 2, or 1 and 3.
  static __device__ __forceinline__ std::uint32_t even(std::uint32_t x) { return x & 0x00ff00ffu; }
  static __device__ __forceinline__ std::uint32_t odd(std::uint32_t x) {
    return __byte_perm(x, 0, 0x4341);
  }
};

// Kind kFp8. The bits of an E4M3 number moved to those of a half are 2^-8 times as much, because
// its exponent has a bias of 7 and not of 15; subnormals too.
struct Fp8Bytes {
  static constexpr float kUnit = 256.0f;
  static constexpr float kOffset = 0.0f;
  static __device__ __forceinline__ std::uint32_t prepare(std::uint32_t x) { return x; }
  static __device__ __forceinline__ std::uint32_t even(std::uint32_t x) {
    return (x & 0x00800080u) << 8 | (x & 0x007f007fu) << 7;
  }
  static __device__ __forceinline__ std::uint32_t odd(std::uint32_t x) {
    return (x & 0x80008000u) | (x & 0x7f007f00u) >> 1;
  }
};

template <int kHeadDimension, class Bytes>
struct ByteCodes : PlainCodes<kHeadDimension> {
  using PlainCodes<kHeadDimension>::kHeadDim, PlainCodes<kHeadDimension>::kOnes;
  using typename PlainCodes<kHeadDimension>::Running;
  static constexpr codec::format::TokenScaleLayout kLayout = codec::format::Int8Block(kHeadDim);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = 2;
  template <int kStages>
  using Ring = BlockRing<kStages, kBytes>;
  static constexpr int kSlotBytes = kBytes;
  static constexpr bool kHasOffset = Bytes::kOffset != 0;
  static constexpr int q_place(int channel) { return place_two_apart(channel); }
  // -kOffset * p * scale, which is the same for all channels.
  static __device__ __forceinline__ int min_row(int) { return kHasOffset ? 1 : -1; }

  static __device__ __forceinline__ void attend(const char* block, const char* q_codes, const char*,
                                                const char*, bool, const float (&unit)[2],
                                                const float (&)[2], int lane, const BlockSite&,
                                                Running& state) {
    const int g = lane / 4, j = lane % 4;
    float scores[4][4] = {}, q_sum[4] = {};
#pragma unroll
    for (int w = 0; w < kHeadDim / 32; ++w) {
      const uint4 q = *reinterpret_cast<const uint4*>(q_codes + w * 512);
      if constexpr (kHasOffset) {
        mma_f16(q_sum, kOnes, kOnes, kOnes, kOnes, q.x, q.y);
        mma_f16(q_sum, kOnes, kOnes, kOnes, kOnes, q.z, q.w);
      }
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        const char* row = block + kLayout.k_codes + (tile * 16 + g) * kHeadDim + w * 32 + j * 8;
        const uint2 low = prepare(*reinterpret_cast<const uint2*>(row));
        const uint2 high = prepare(*reinterpret_cast<const uint2*>(row + 8 * kHeadDim));
        mma_f16(scores[tile], Bytes::even(low.x), Bytes::even(high.x), Bytes::odd(low.x),
                Bytes::odd(high.x), q.x, q.y);
        mma_f16(scores[tile], Bytes::even(low.y), Bytes::even(high.y), Bytes::odd(low.y),
                Bytes::odd(high.y), q.z, q.w);
      }
    }
    const auto* k_scale = reinterpret_cast<const __half*>(block + kLayout.k_scale);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scale = __half2float(k_scale[tile * 16 + g + i / 2 * 8]);
        scores[tile][i] = (scores[tile][i] * Bytes::kUnit - Bytes::kOffset * q_sum[i % 2]) * scale;
      }
    }
    const float no_offset[1][2] = {{0, 0}};
    std::uint32_t p[8];
    state.template exponentiate<4, 1>(scores, unit, no_offset, p);

    float totals[4] = {};
    const std::uint32_t ones = g == 0 ? kOnes : 0, minus_offset = g == 1 ? kMinusOffset : 0;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const auto* v_scale =
          reinterpret_cast<const std::uint32_t*>(block + kLayout.v_scale) + tile * 8;
      const std::uint32_t p0 = half2_mul(p[2 * tile], v_scale[j]);
      const std::uint32_t p1 = half2_mul(p[2 * tile + 1], v_scale[j + 4]);
      mma_f16(totals, ones, 0, ones, 0, p[2 * tile], p[2 * tile + 1]);
      if constexpr (kHasOffset) mma_f16(totals, minus_offset, 0, minus_offset, 0, p0, p1);
      const char* rows = block + kLayout.v_codes + (tile * 16 + 2 * j) * kHeadDim + 4 * g;
#pragma unroll
      for (int w = 0; w < kHeadDim / 32; ++w) {
        std::uint32_t even_channels[2], odd_channels[2];  // of tokens 2j, 2j+1, and 8 further
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const char* at = rows + r * 8 * kHeadDim + w * 32;
          const std::uint32_t a = Bytes::prepare(*reinterpret_cast<const std::uint32_t*>(at));
          const std::uint32_t b =
              Bytes::prepare(*reinterpret_cast<const std::uint32_t*>(at + kHeadDim));
          even_channels[r] = __byte_perm(a, b, 0x6420);
          odd_channels[r] = __byte_perm(a, b, 0x7531);
        }
        mma_f16(state.sums[2 * w], Bytes::even(even_channels[0]), Bytes::even(odd_channels[0]),
                Bytes::even(even_channels[1]), Bytes::even(odd_channels[1]), p0, p1);
        mma_f16(state.sums[2 * w + 1], Bytes::odd(even_channels[0]), Bytes::odd(odd_channels[0]),
                Bytes::odd(even_channels[1]), Bytes::odd(odd_channels[1]), p0, p1);
      }
    }
    state.totals[0] += totals[0];
    state.totals[1] += totals[1];
  }
  static __device__ __forceinline__ void to_values(Running& running,
                                                   SoftmaxState<kHeadDim / 16>& state) {
#pragma unroll
    for (int m = 0; m < kHeadDim / 16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) running.sums[m][i] *= Bytes::kUnit;
    }
    state = running;
  }

 private:
  static constexpr std::uint32_t kMinusOffset = 0xd800d800u;  // -128, twice

  static __device__ __forceinline__ uint2 prepare(uint2 x) {
    return {Bytes::prepare(x.x), Bytes::prepare(x.y)};
  }
};

template <int kHeadDim>
AttentionVariant int8_variant() {
  return make_variant<ByteCodes<kHeadDim, Int8Bytes>>(
      {.kind = codec::BlockKind::kInt8, .head_dim = kHeadDim});
}
template <int kHeadDim>
AttentionVariant fp8_variant() {
  return make_variant<ByteCodes<kHeadDim, Fp8Bytes>>(
      {.kind = codec::BlockKind::kFp8, .head_dim = kHeadDim});
}

}  // namespace kvferry::kernels
