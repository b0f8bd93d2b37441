#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/attention_args.h"
#include "kernels/device/attention_variant.cuh"
#include "kernels/device/block_ring.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/lut_tables.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/plain_codes.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kernels/device/values.cuh"
#include "kvcodec/format.h"
#include "kvcodec/lut.h"

namespace kvferry::kernels {

// The codes of one word (three at 3 bits) of a lane and tile: kFragments fragments of 2 * 2 pairs,
// (half h, byte r), of the codes of two fields. A pair's bits lead into a table in shared memory
// that has a column of its own for every lane, so that no two lanes ever meet in a bank. An entry
// holds the levels of kCodes codes for each lane.
template <int kBits>
struct LutWords {  // 2 and 4 bits: a byte is the number of an entry, which has all its codes
  static constexpr int kFragments = 4 / kBits, kStreams = 1;
  static constexpr int kEntries = 256, kEntryBytes = 256;  // of which half is used at 4 bits
  static constexpr int kCodes = 8 / kBits;

  // pair[fragment][2 * h + r]. lane_table: the table at this lane's column.
  static __device__ __forceinline__ void look_up(const char* lane_table,
                                                 const std::uint32_t (&x)[1],
                                                 std::uint32_t (&pair)[kFragments][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t at = __byte_perm(x[0], 0, 0x4404 | i << 4);  // times kEntryBytes
      if constexpr (kFragments == 1) {
        pair[0][i] = *reinterpret_cast<const std::uint32_t*>(lane_table + at);
      } else {
        const uint2 both = *reinterpret_cast<const uint2*>(lane_table + at);
        pair[0][i] = both.x;
        pair[1][i] = both.y;
      }
    }
  }
};

template <>
struct LutWords<3> {
  static constexpr int kFragments = 4, kStreams = 3;
  static constexpr int kEntries = 64, kEntryBytes = 128;
  static constexpr int kCodes = 2;

  static __device__ __forceinline__ void look_up(const char* lane_table,
                                                 const std::uint32_t (&x)[3],
                                                 std::uint32_t (&pair)[4][4]) {
    constexpr std::uint32_t kThree = 0x00070007u;
    // The last fragment's codes lie apart: at bits 6..8 of the words' halves, the last ones also in
    // the top bits. Of both halves at a time.
    const std::uint32_t scattered[2] = {(x[0] >> 6 & kThree) | (x[2] >> 3 & kThree << 3),
                                        (x[1] >> 6 & kThree) | (x[0] >> 12 & 0x00080008u) |
                                            (x[1] >> 11 & 0x00100010u) |
                                            (x[2] >> 10 & 0x00200020u)};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int fragment = 0; fragment < 3; ++fragment) {
          pair[fragment][2 * h + r] = entry(lane_table, x[fragment], 16 * h + 9 * r);
        }
        pair[3][2 * h + r] = entry(lane_table, scattered[r], 16 * h);
      }
    }
  }

 private:
  static __device__ __forceinline__ std::uint32_t entry(const char* lane_table, std::uint32_t word,
                                                        int shift) {
    const std::uint32_t at = (shift < 7 ? word << (7 - shift) : word >> (shift - 7)) & 63u << 7;
    return *reinterpret_cast<const std::uint32_t*>(lane_table + at);
  }
};

// Attention on blocks of kind kLut: the levels of codes, which are exact in halves, are the A
// fragments of mma.sync; the scales of tokens meet scores and p. The zeros of shifted keys are one
// product with q per block, as the mins of ScalarCodes.
template <int kHeadDimension, codec::LutTable kTable>
struct LutCodes : PlainCodes<kHeadDimension> {
  using PlainCodes<kHeadDimension>::kHeadDim, PlainCodes<kHeadDimension>::kOnes;
  using typename PlainCodes<kHeadDimension>::Running;
  static constexpr int kBits = codec::FindLut(kTable)->bits;
  static constexpr bool kShifted = codec::FindLut(kTable)->shifted_keys;
  static constexpr codec::format::LutLayout kLayout =
      codec::format::LutBlock(kHeadDim, kBits, kShifted);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = 2;
  template <int kStages>
  using Ring = BlockRing<kStages, kBytes>;
  static constexpr int kSlotBytes = kBytes;
  using Words = LutWords<kBits>;
  static constexpr int kTableBytes = Words::kEntries * Words::kEntryBytes;
  static constexpr int q_place(int channel) { return place_two_apart(channel); }

  template <int kThreads>
  static __device__ __forceinline__ void fill_tables(char* tables, const AttentionArgs&,
                                                     const AttentionPiece&) {
    constexpr int kPieces = 128 * Words::kCodes / 2 / 16;  // of an entry, 16 bytes each
    constexpr std::uint32_t kMask = (1u << kBits) - 1;
    const DeviceLut& lut = device_luts.of[static_cast<int>(kTable)];
    for (int i = threadIdx.x; i < Words::kEntries * kPieces; i += kThreads) {
      const std::uint32_t codes = i / kPieces;
      const auto two = [&](int first) {
        return half2_pack(lut.levels[codes >> (first * kBits) & kMask],
                          lut.levels[codes >> ((first + 1) * kBits) & kMask]);
      };
      const std::uint32_t a = two(0), b = Words::kCodes == 2 ? a : two(2);
      *reinterpret_cast<uint4*>(tables + codes * Words::kEntryBytes + i % kPieces * 16) = {a, b, a,
                                                                                           b};
    }
  }

  static __device__ __forceinline__ void attend(const char* block, const char* q_codes,
                                                const char* q_plain, const char*, bool,
                                                const float (&unit)[2], const float (&)[2],
                                                int lane, const BlockSite& site, Running& state) {
    const int g = lane / 4, j = lane % 4;
    const char* lane_table = site.tables + lane * 2 * Words::kCodes;
    float scores[4][4] = {};
    [[maybe_unused]] float even[4] = {}, odd[4] = {};  // q times zeros
    if constexpr (kShifted) {  // all rows alike; each sum has half of the pairs of channels
#pragma unroll
      for (int w = 0; w < kHeadDim / 32; ++w) {
        const uint4 q = load_shared16(q_plain + w * 512);
        const uint4 zero = load_shared16(block + kLayout.k_zero + w * 64 + j * 16);
        mma_f16(even, zero.x, zero.y, zero.z, zero.w, q.x, q.z);  // rows g: f = 0, 2
        mma_f16(odd, zero.x, zero.y, zero.z, zero.w, q.y, q.w);   // rows g + 8: f = 1, 3
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 16 / Words::kFragments; ++n) {
      uint4 words[Words::kStreams];
#pragma unroll
      for (int s = 0; s < Words::kStreams; ++s) {
        words[s] = load_shared16(block + kLayout.k_codes + s * kStreamBytes + n * 512 + lane * 16);
      }
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        std::uint32_t pair[Words::kFragments][4];
        look_up(lane_table, words, tile, pair);
#pragma unroll
        for (int i = 0; i < Words::kFragments; ++i) {
          const int m = n * Words::kFragments + i;  // 2w + e
          const uint2 q = *reinterpret_cast<const uint2*>(q_codes + m / 2 * 512 + m % 2 * 8);
          mma_f16(scores[tile], pair[i][0], pair[i][1], pair[i][2], pair[i][3], q.x, q.y);
        }
      }
    }
    // Rows g in .x and .y, rows g + 8 in .z and .w, by tile.
    const uint4 k_scale = load_shared16(block + kLayout.k_scale + g * 16);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = float2_from_half2(component(k_scale, i / 2 * 2 + tile / 2));
        scores[tile][i] *= tile % 2 == 0 ? two.x : two.y;
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
    for (int two = 0; two < 2; ++two) {  // tiles
      const uint4 s = load_shared16(block + kLayout.v_scale + j * 32 + two * 16);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int tile = 2 * two + t;
        scaled[2 * tile] = half2_mul(p[2 * tile], t == 0 ? s.x : s.y);
        scaled[2 * tile + 1] = half2_mul(p[2 * tile + 1], t == 0 ? s.z : s.w);
        mma_f16(totals, ones, 0, ones, 0, p[2 * tile], p[2 * tile + 1]);
      }
    }
    constexpr int kWords = kHeadDim / 16 / Words::kFragments;     // of a lane in a tile
    constexpr int kUnit = codec::format::internal::Gcd4(kWords);  // of these in 16 bytes
    constexpr int kTilesAtOnce = 4 / kUnit;
#pragma unroll
    for (int plane = 0; plane < kWords; ++plane) {
      const int set = plane / (kWords / kUnit), column = plane % (kWords / kUnit);
      uint4 words[Words::kStreams];
#pragma unroll
      for (int s = 0; s < Words::kStreams; ++s) {
        words[s] =
            load_shared16(block + kLayout.v_codes + s * kStreamBytes + plane * 512 + lane * 16);
      }
#pragma unroll
      for (int t = 0; t < kTilesAtOnce; ++t) {
#pragma unroll
        for (int k = 0; k < kUnit; ++k) {
          const int tile = set * kTilesAtOnce + t;
          std::uint32_t pair[Words::kFragments][4];
          look_up(lane_table, words, t * kUnit + k, pair);
#pragma unroll
          for (int i = 0; i < Words::kFragments; ++i) {
            const std::uint32_t(&x)[4] = pair[i];
            mma_f16(state.sums[(column * kUnit + k) * Words::kFragments + i],
                    low_halves(x[0], x[2]), high_halves(x[0], x[2]), low_halves(x[1], x[3]),
                    high_halves(x[1], x[3]), scaled[2 * tile], scaled[2 * tile + 1]);
          }
        }
      }
    }
    state.totals[0] += totals[0];
    state.totals[1] += totals[1];
  }

 private:
  static constexpr int kStreamBytes = 8 * kHeadDim;  // of the words of all tiles, at 3 bits

  static __device__ __forceinline__ void look_up(const char* lane_table,
                                                 const uint4 (&words)[Words::kStreams], int i,
                                                 std::uint32_t (&pair)[Words::kFragments][4]) {
    std::uint32_t x[Words::kStreams];
#pragma unroll
    for (int s = 0; s < Words::kStreams; ++s) x[s] = component(words[s], i);
    Words::look_up(lane_table, x, pair);
  }
};

template <int kHeadDim, codec::LutTable kTable>
AttentionVariant lut_variant() {
  return make_variant<LutCodes<kHeadDim, kTable>>(
      {.kind = codec::BlockKind::kLut, .head_dim = kHeadDim, .table = kTable});
}

}  // namespace kvferry::kernels
