#pragma once

#include <cstdint>

#include "kernels/device/integer_sums.cuh"
#include "kernels/device/scalar_codes.cuh"

namespace kvferry::kernels {

// ScalarCodes for up to four query rows, whose values meet p as integers: the bytes of a word,
// masked in their places, are four tokens of one channel, and a row of q has two columns, one for
// each byte of p. So a word of four 2-bit codes per byte takes three masks in place of eight
// instructions, and half as many products.
template <int kHeadDimension, int kKBits, int kVBits, int kKGroup>
struct IntegerCodes : ScalarCodes<kHeadDimension, kKBits, kVBits, kKGroup, kHeadDimension> {
  using Base = ScalarCodes<kHeadDimension, kKBits, kVBits, kKGroup, kHeadDimension>;
  using Base::kHeadDim, Base::kKRows, Base::kLayout;
  using V = typename Base::V;
  using Running = IntegerSums<kHeadDim / 16>;
  static constexpr int kColumnsOfRow = 2;
  static constexpr bool kScalesMeetP = false;  // IntegerSums::top knows them

  static __device__ __forceinline__ void attend(const char* block, const char* q_codes,
                                                const char* q_plain, const char* ones, bool,
                                                const float (&unit)[2], const float (&code_unit)[2],
                                                int lane, const BlockSite&, Running& state) {
    const int g = lane / 4, j = lane % 4;
    float scores[4][4], mins[kKRows][2], offset[kKRows];
    Base::template score<kColumnsOfRow>(block, q_codes, q_plain, j, lane, scores, mins);
#pragma unroll
    for (int row = 0; row < kKRows; ++row) offset[row] = mins[row][0] * unit[0];
    std::uint32_t scale[4], p[4], bytes[4];
    load_scales(block, g, scale);
    state.exponentiate(scores, code_unit[0], offset, scale, p, bytes);
    const char* rows = Base::mins_or_ones(block, ones, g, j);
    float total[4] = {0, 0, 0, 0};  // [0]: of tokens g; [3]: of tokens g+8
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of tiles
      const uint4 min = load_shared16(rows + pair * 16);
      mma_f16(total, min.x, min.z, min.y, min.w, p[2 * pair], p[2 * pair + 1]);
    }
    state.total += total[0] + total[3];
    accumulate(block, bytes, lane, state.sums);
  }

  // Both columns of a row get the same.
  static __device__ __forceinline__ void to_values(Running& running,
                                                   SoftmaxState<kHeadDim / 16>& state) {
    if (running.top == Running::kNothing) return;
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      state.top[column] = running.top + state.range.headroom;
      state.totals[column] = running.total;
    }
    Base::take_lower_fields_off(running.sums);
#pragma unroll
    for (int m = 0; m < kHeadDim / 16; ++m) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float value = (static_cast<float>(running.sums[m][2 * e]) +
                             static_cast<float>(running.sums[m][2 * e + 1]) * Running::kStep) /
                            V::weight(2 * (m % 2) + e);
        state.sums[m][2 * e] = state.sums[m][2 * e + 1] = value;
      }
    }
  }

 private:
  static constexpr int kWords = kHeadDim * kVBits / 64;                // of a lane in a tile
  static constexpr int kUnit = codec::format::internal::Gcd4(kWords);  // of these in 16 bytes
  static constexpr int kTilesAtOnce = 4 / kUnit;

  // V's scales of tokens g and g+8 of every tile, as two halves.
  static __device__ __forceinline__ void load_scales(const char* block, int g,
                                                     std::uint32_t (&scale)[4]) {
    const std::uint32_t half = g % 2 ? 0x7632 : 0x5410;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint4 s = load_shared16(block + kLayout.v_scale + g / 2 * 32 + pair * 16);
      scale[2 * pair] = __byte_perm(s.x, s.z, half);
      scale[2 * pair + 1] = __byte_perm(s.y, s.w, half);
    }
  }

  static __device__ __forceinline__ std::uint32_t field(std::uint32_t word, int f) {
    constexpr std::uint32_t kMask = 0x01010101u * ((1u << kVBits) - 1);
    return V::is_top(f) ? word : word & kMask << (kVBits * V::of(f));
  }

  // Sums of channels 32w + 4g + 2e (0, 1) and + 1 (2, 3), in the places of their codes.
  static __device__ __forceinline__ void accumulate(const char* block,
                                                    const std::uint32_t (&bytes)[4], int lane,
                                                    int (&sums)[kHeadDim / 16][4]) {
    constexpr int kLoads = kWords / kUnit;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of tiles
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const auto plane = [&](int tile) {
          return load_shared16(block + kLayout.v_codes + (tile / kTilesAtOnce * kLoads + i) * 512 +
                               lane * 16);
        };
        const uint4 even = plane(2 * pair);
        const uint4 odd = kTilesAtOnce == 1 ? plane(2 * pair + 1) : even;
#pragma unroll
        for (int k = 0; k < kUnit * V::kPerByte / 2; ++k) {
          const int m = i * (kUnit * V::kPerByte / 2) + k;  // 2w + e
          const int f0 = 2 * (m % 2), f1 = f0 + 1;
          const int n0 = 2 * k / V::kPerByte, n1 = (2 * k + 1) / V::kPerByte;
          const int even_at = 2 * pair % kTilesAtOnce * kUnit;
          const int odd_at = (2 * pair + 1) % kTilesAtOnce * kUnit;
          mma_u8s8(sums[m], field(component(even, even_at + n0), f0),
                   field(component(even, even_at + n1), f1), field(component(odd, odd_at + n0), f0),
                   field(component(odd, odd_at + n1), f1), bytes[2 * pair], bytes[2 * pair + 1]);
        }
      }
    }
  }
};

template <int kHeadDim, int kKBits, int kVBits, int kKGroup, int kVGroup>
AttentionVariant scalar_variant() {
  AttentionVariant variant = make_variant<ScalarCodes<kHeadDim, kKBits, kVBits, kKGroup, kVGroup>>(
      {.kind = codec::BlockKind::kScalar,
       .head_dim = kHeadDim,
       .k_bits = kKBits,
       .v_bits = kVBits,
       .k_group_tokens = kKGroup,
       .v_group_channels = kVGroup});
  if constexpr (kVGroup == kHeadDim && kVBits <= 4) {  // 8 bits are bound by memory anyway
    using Codes = IntegerCodes<kHeadDim, kKBits, kVBits, kKGroup>;
    variant.few_rows = make_kernels<Codes>();
    variant.most_few_rows = kColumns / Codes::kColumnsOfRow;
  }
  return variant;
}

}  // namespace kvferry::kernels
