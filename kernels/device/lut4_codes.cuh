#pragma once

#include <cuda_fp16.h>

#include <bit>
#include <cstdint>

#include "kernels/device/block_ring.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/scalar_codes.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kvcodec/format.h"
#include "kvcodec/lut.h"

namespace kvferry::kernels {

// The 16 levels of a table as halves, their low and their high bytes apart, four to a register.
struct Levels16 {
  std::uint32_t low[4], high[4];
};

// The bits of a half that is zero or normal, which holds `value` exactly.
constexpr std::uint32_t exact_half_bits(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) == 0) return 0;
  return (bits >> 16 & 0x8000u) | ((bits & 0x7fffffffu) - (112u << 23)) >> 13;
}

constexpr Levels16 levels_of(codec::LutTable table) {
  const codec::Lut& lut = *codec::FindLut(table);
  Levels16 levels{};
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t half = exact_half_bits(lut.levels[i]);
    levels.low[i / 4] |= (half & 0xffu) << (8 * (i % 4));
    levels.high[i / 4] |= (half >> 8) << (8 * (i % 4));
  }
  return levels;
}

// Attention on blocks of kind kLut with 4 bits: byte permutations of the table's registers give the
// levels of a word's eight codes as the A fragment of one mma.sync. Nothing but the levels, which
// are exact, is ever in 16 bits; the scales of tokens meet scores and p. The zeros of shifted keys
// are one product with q per block, as the mins of ScalarCodes.
template <int kHeadDimension, codec::LutTable kTable>
struct Lut4Codes {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr bool kShifted = codec::FindLut(kTable)->shifted_keys;
  static constexpr codec::format::LutLayout kLayout =
      codec::format::LutBlock(kHeadDim, 4, kShifted);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = 2;
  template <int kStages>
  using Ring = BlockRing<kStages, kBytes>;
  static constexpr int kSlotBytes = kBytes;
  static constexpr float kScoreUnit = 1.0f;
  static constexpr int kOnesRow = 0;
  static constexpr float q_weight(int) { return 1.0f; }
  static constexpr int q_place(int channel) { return channel; }
  static __device__ __forceinline__ int min_row(int) { return -1; }

  static __device__ __forceinline__ void attend(const char* block, const char*, const char* q_plain,
                                                const char*, bool, const float (&unit)[2],
                                                const float (&)[2], int lane, const BlockSite&,
                                                SoftmaxState<kHeadDim / 16>& state) {
    const int g = lane / 4, j = lane % 4;
    float scores[4][4] = {};
    [[maybe_unused]] float even[4] = {}, odd[4] = {};  // q times zeros
#pragma unroll
    for (int w = 0; w < kHeadDim / 32; ++w) {
      const uint4 q = load_shared16(q_plain + w * 512);
      if constexpr (kShifted) {  // all rows alike; each sum has half of the pairs of channels
        const uint4 zero = load_shared16(block + kLayout.k_zero + w * 64 + j * 16);
        mma_f16(even, zero.x, zero.y, zero.z, zero.w, q.x, q.z);  // rows g: f = 0, 2
        mma_f16(odd, zero.x, zero.y, zero.z, zero.w, q.y, q.w);   // rows g + 8: f = 1, 3
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint4 words = load_shared16(block + kLayout.k_codes + (2 * w + e) * 512 + lane * 16);
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          const Fragment f = fragment(component(words, tile));
          mma_f16(scores[tile], f.low[0], f.high[0], f.low[1], f.high[1], component(q, 2 * e),
                  component(q, 2 * e + 1));
        }
      }
    }
    // Rows g in .x and .y, rows g + 8 in .z and .w, by tile.
    const uint4 k_scale = load_shared16(block + kLayout.k_scale + g * 16);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = float2_from_half2(component(k_scale, i / 2 * 2 + tile / 2));
        scores[tile][i] *= tile % 2 == 0 ? pair.x : pair.y;
      }
    }
    float offset[1][2] = {};
    if constexpr (kShifted) {
      offset[0][0] = (even[0] + odd[2]) * unit[0];
      offset[0][1] = (even[1] + odd[3]) * unit[1];
    }
    std::uint32_t p[8];
    state.template exponentiate<4, 1>(scores, unit, offset, p);

    float totals[4] = {};
    const std::uint32_t ones = g == 0 ? kOnes : 0;
    std::uint32_t scaled[8];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of tiles
      const uint4 s = load_shared16(block + kLayout.v_scale + j * 32 + pair * 16);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int tile = 2 * pair + t;
        scaled[2 * tile] = half2_mul(p[2 * tile], t == 0 ? s.x : s.y);
        scaled[2 * tile + 1] = half2_mul(p[2 * tile + 1], t == 0 ? s.z : s.w);
        mma_f16(totals, ones, 0, ones, 0, p[2 * tile], p[2 * tile + 1]);
      }
    }
    constexpr int kWords = kHeadDim / 16;                         // of a lane in a tile
    constexpr int kUnit = codec::format::internal::Gcd4(kWords);  // of these in 16 bytes
    constexpr int kTilesAtOnce = 4 / kUnit;
#pragma unroll
    for (int plane = 0; plane < kWords; ++plane) {
      const int set = plane / (kWords / kUnit), column = plane % (kWords / kUnit);
      const uint4 words = load_shared16(block + kLayout.v_codes + plane * 512 + lane * 16);
#pragma unroll
      for (int t = 0; t < kTilesAtOnce; ++t) {
#pragma unroll
        for (int k = 0; k < kUnit; ++k) {
          const int tile = set * kTilesAtOnce + t;
          const Fragment f = fragment(component(words, t * kUnit + k));
          mma_f16(state.sums[column * kUnit + k], f.low[0], f.low[1], f.high[0], f.high[1],
                  scaled[2 * tile], scaled[2 * tile + 1]);
        }
      }
    }
    state.totals[0] += totals[0];
    state.totals[1] += totals[1];
  }
  static __device__ __forceinline__ void from_values(float (&)[kHeadDim / 16][4]) {}
  static __device__ __forceinline__ void to_values(float (&)[kHeadDim / 16][4]) {}

 private:
  static constexpr std::uint32_t kOnes = 0x3c003c00u;
  static constexpr Levels16 kLevels = levels_of(kTable);

  // Levels as pairs of halves: of fields 0 and 1 of bytes 0 and 2 (low), and of 1 and 3 (high).
  struct Fragment {
    std::uint32_t low[2], high[2];
  };

  // One byte of the levels that four selector nibbles name; `upper` has a byte of ones where a
  // code's top bit is set.
  template <bool kHigh>
  static __device__ __forceinline__ std::uint32_t look_up(std::uint32_t selectors,
                                                          std::uint32_t upper) {
    constexpr Levels16 levels = kLevels;
    const std::uint32_t a = kHigh ? permute(levels.high[0], levels.high[1], selectors)
                                  : permute(levels.low[0], levels.low[1], selectors);
    const std::uint32_t b = kHigh ? permute(levels.high[2], levels.high[3], selectors)
                                  : permute(levels.low[2], levels.low[3], selectors);
    return (a & ~upper) | (b & upper);
  }

  static __device__ __forceinline__ Fragment fragment(std::uint32_t word) {
    // Nibbles in order: byte 0 field 0, byte 0 field 1, byte 1 field 0, ... Two halves of a word.
    const std::uint32_t selectors = word & 0x77777777u, fields0 = word << 4;
    std::uint32_t rows[2], next_rows[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // A permutation that copies signs: those of field 0 out of fields0, of field 1 out of word.
      const std::uint32_t upper = permute(fields0, word, h == 0 ? 0xd9c8u : 0xfbeau);
      const std::uint32_t at = h == 0 ? selectors : selectors >> 16;
      const std::uint32_t low = look_up<false>(at, upper), high = look_up<true>(at, upper);
      rows[h] = __byte_perm(low, high, 0x5140);       // byte 0 or 2: field 0, field 1
      next_rows[h] = __byte_perm(low, high, 0x7362);  // byte 1 or 3
    }
    return {{__byte_perm(rows[0], rows[1], 0x5410), __byte_perm(rows[0], rows[1], 0x7632)},
            {__byte_perm(next_rows[0], next_rows[1], 0x5410),
             __byte_perm(next_rows[0], next_rows[1], 0x7632)}};
  }

  // Unlike __byte_perm, which masks its selectors: one with its top bit set gives eight copies of
  // the byte's sign.
  static __device__ __forceinline__ std::uint32_t permute(std::uint32_t a, std::uint32_t b,
                                                          std::uint32_t selectors) {
    std::uint32_t out;
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(out) : "r"(a), "r"(b), "r"(selectors));
    return out;
  }
};

}  // namespace kvferry::kernels
