#pragma once

#include <cstdint>

#include "kernels/device/attention_variant.cuh"
#include "kernels/device/block_ring.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/plain_codes.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kvcodec/format.h"

// Attention on the codes of one block of kind kScalar. A code is never converted: masked in its
// place in a 32-bit word it is, as a half, the subnormal code * 2^(bits * field) * 2^-24, which
// mma.sync multiplies exactly and at full rate. Scales go into q and p, powers of two into q and
// the final sum, mins into one product per block.
namespace kvferry::kernels {

// A whole byte is a subnormal too, and cheaper to get than its top field alone: it takes the place
// of the top code, and the fields below it are taken off again, of K in the multipliers
// (c_i - c_top), of V in the sums at the end.
template <int kBits>
struct Fields {
  static_assert(kBits == 2 || kBits == 4 || kBits == 8);
  static constexpr int kPerByte = 8 / kBits;
  static constexpr int of(int f) { return f % kPerByte; }  // f: the format's field, 0..3
  static constexpr bool is_top(int f) { return of(f) == kPerByte - 1; }
  static constexpr float weight(int f) { return static_cast<float>(1 << (kBits * of(f))); }
  static constexpr std::uint32_t kMask = 0x00010001u * ((1u << kBits) - 1);

  // Bytes 0 and 2 (r = 0) of a word, or of the word moved by a byte (r = 1).
  static __device__ __forceinline__ std::uint32_t low(std::uint32_t word, int f) {
    return word & (is_top(f) ? 0x00ff00ffu : kMask << (kBits * of(f)));
  }
  static __device__ __forceinline__ std::uint32_t upper_bytes(std::uint32_t word) {
    return __byte_perm(word, 0, 0x4341);
  }
  static __device__ __forceinline__ std::uint32_t high(std::uint32_t upper, int f) {
    return is_top(f) ? upper : upper & (kMask << (kBits * of(f)));
  }
};

template <int kHeadDimension, int kKBits, int kVBits, int kKGroup, int kVGroup>
struct ScalarCodes : PlainCodes<kHeadDimension> {
  using PlainCodes<kHeadDimension>::kHeadDim;
  using typename PlainCodes<kHeadDimension>::Running;
  static constexpr codec::format::ScalarLayout kLayout =
      codec::format::ScalarBlock(kHeadDim, kKBits, kVBits, kKGroup, kVGroup);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = 2;
  template <int kStages>
  using Ring = BlockRing<kStages, kBytes>;
  static constexpr int kSlotBytes = kBytes;
  static constexpr int kGroupsOfW = kHeadDim / 32;
  static constexpr int kKRows = codec::format::kTokens / kKGroup;
  static constexpr int kVGroups = kHeadDim / kVGroup;
  static_assert(kVGroups < 8, "the row of ones needs a place beside the rows of mins");
  using K = Fields<kKBits>;
  using V = Fields<kVBits>;

  // A code as a subnormal is code / kSubnormal.
  static constexpr float kSubnormal = 16777216.0f;
  // Multiplier of q in the copy that meets codes, and what the scores are then short of.
  static constexpr float kBoost = 4.0f;
  static constexpr float q_weight(int f) { return kBoost / K::weight(f); }
  static constexpr float kScoreUnit = kSubnormal / kBoost;
  // Rows of SoftmaxState::totals, by g: p times V's mins of a group of channels, and p alone.
  static constexpr int kOnesRow = kVGroups;
  static __device__ __forceinline__ int min_row(int w) { return w * 32 / kVGroup; }

  // Adds one block to `state`: scores, softmax, values.
  static __device__ __forceinline__ void attend(const char* block, const char* q_codes,
                                                const char* q_plain, const char* ones, bool,
                                                const float (&unit)[2], const float (&code_unit)[2],
                                                int lane, const BlockSite&, Running& state) {
    const int g = lane / 4, j = lane % 4;
    float scores[4][4], offset[kKRows][2];
    score(block, q_codes, q_plain, j, lane, scores, offset);
#pragma unroll
    for (int row = 0; row < kKRows; ++row) {
      offset[row][0] *= unit[0];
      offset[row][1] *= unit[1];
    }
    std::uint32_t p[8];
    state.template exponentiate<4, kKRows>(scores, code_unit, offset, p);
    accumulate(block, p, mins_or_ones(block, ones, g, j), j, lane, state.sums, state.totals);
  }

  // scores: of tokens 16*tile + g (0, 1) and + 8 (2, 3), columns 2j and 2j+1, to be multiplied by
  // kScoreUnit; mins: per column and row of scales, what the mins add to each.
  //   q_codes, q_plain: this lane's bytes of every w, as QueryLoad lays them out. Where a row has
  //   two columns, the first one's mins are its.
  template <int kColumnsOfRow = 1>
  static __device__ __forceinline__ void score(const char* block, const char* q_codes,
                                               const char* q_plain, int j, int lane,
                                               float (&scores)[4][4], float (&mins)[kKRows][2]) {
    float even[kKRows][4], odd[kKRows][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) scores[tile][i] = 0;
#pragma unroll
      for (int row = 0; row < kKRows; ++row) even[row][i] = odd[row][i] = 0;
    }
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) {
      const uint4 qc = load_shared16(q_codes + w * 512);
      uint4 qp;
      if constexpr (kColumnsOfRow == 1) {
        qp = load_shared16(q_plain + w * 512);
      } else {
        const uint2 of_column = *reinterpret_cast<const uint2*>(q_plain + w * 256);
        qp.x = of_column.x;
        qp.z = of_column.y;
      }
      std::uint32_t qs[kKRows][4];
#pragma unroll
      for (int row = 0; row < kKRows; ++row) {
        const int at = row * kHeadDim * 2 + w * 64 + j * 16;
        const uint4 scale = load_shared16(block + kLayout.k_scale + at);
        const uint4 min = load_shared16(block + kLayout.k_min + at);
        scale_query(qc, scale, qs[row]);
        mma_f16(even[row], min.x, min.y, min.z, min.w, qp.x, qp.z);  // rows g: channels f = 0, 2
        if constexpr (kColumnsOfRow == 1) {                          // rows g+8: f = 1, 3
          mma_f16(odd[row], min.x, min.y, min.z, min.w, qp.y, qp.w);
        }
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        constexpr int kWordsOfW = kKBits / 2;
        const int f0 = 2 * e, f1 = 2 * e + 1;
        const int n0 = w * kWordsOfW + f0 / K::kPerByte, n1 = w * kWordsOfW + f1 / K::kPerByte;
        const uint4 words0 = load_shared16(block + kLayout.k_codes + n0 * 512 + lane * 16);
        const uint4 words1 =
            n1 == n0 ? words0 : load_shared16(block + kLayout.k_codes + n1 * 512 + lane * 16);
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          const int row = kKRows == 1 ? 0 : tile / 2;
          const std::uint32_t x0 = component(words0, tile), x1 = component(words1, tile);
          mma_f16(scores[tile], K::low(x0, f0), K::high(K::upper_bytes(x0), f0), K::low(x1, f1),
                  K::high(K::upper_bytes(x1), f1), qs[row][f0], qs[row][f1]);
        }
      }
    }
#pragma unroll
    for (int row = 0; row < kKRows; ++row) {
      mins[row][0] = even[row][0] + (kColumnsOfRow == 1 ? odd[row][2] : even[row][3]);
      mins[row][1] = even[row][1] + odd[row][3];
    }
  }

  // Adds p times the values to sums (O of channels 32w + 4g + 2e + r, columns 2j, 2j+1, at
  // sums[2w+e][2r..]) and to totals: rows g < kVGroups p times the mins, row kVGroups the sum of p.
  //   p: B fragments of the four tiles.
  static __device__ __forceinline__ void accumulate(const char* block, const std::uint32_t (&p)[8],
                                                    const char* mins_or_ones, int j, int lane,
                                                    float (&sums)[kHeadDim / 16][4],
                                                    float (&totals)[2]) {
    float first[4] = {0, 0, 0, 0}, second[4] = {0, 0, 0, 0};
    constexpr int kWords = kHeadDim * kVBits / 64;                // of a lane in a tile
    constexpr int kUnit = codec::format::internal::Gcd4(kWords);  // of these in 16 bytes
    constexpr int kTilesAtOnce = 4 / kUnit;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of tiles
      const uint4 min = load_shared16(mins_or_ones + pair * 16);
      mma_f16(first, min.x, min.y, min.z, min.w, p[4 * pair], p[4 * pair + 1]);
      mma_f16(second, min.x, min.y, min.z, min.w, p[4 * pair + 2], p[4 * pair + 3]);
    }
    totals[0] += first[0] + second[2];
    totals[1] += first[1] + second[3];
#pragma unroll
    for (int set = 0; set < kUnit; ++set) {  // of kTilesAtOnce tiles
      std::uint32_t ps[kTilesAtOnce][kVGroups][2];
#pragma unroll
      for (int t = 0; t < kTilesAtOnce; ++t) {
        const int tile = set * kTilesAtOnce + t;
#pragma unroll
        for (int group = 0; group < kVGroups; ++group) {
          const uint4 s =
              load_shared16(block + kLayout.v_scale + group * 128 + j * 32 + tile / 2 * 16);
          ps[t][group][0] = half2_mul(p[2 * tile], tile % 2 ? s.y : s.x);
          ps[t][group][1] = half2_mul(p[2 * tile + 1], tile % 2 ? s.w : s.z);
        }
      }
#pragma unroll
      for (int i = 0; i < kWords / kUnit; ++i) {
        const int plane = set * (kWords / kUnit) + i;
        const uint4 words = load_shared16(block + kLayout.v_codes + plane * 512 + lane * 16);
        constexpr int kHalves = 2 * V::kPerByte;  // a word has kHalves / 4 fragments of 16 channels
#pragma unroll
        for (int t = 0; t < kTilesAtOnce; ++t) {
#pragma unroll
          for (int k = 0; k < kUnit * kHalves / 4; ++k) {
            const int m = i * (kUnit * kHalves / 4) + k;  // 2w + e
            const int f0 = 2 * (m % 2), f1 = f0 + 1, group = m / 2 * 32 / kVGroup;
            const std::uint32_t x0 = component(words, t * kUnit + 4 * k / kHalves);
            const std::uint32_t x1 = component(words, t * kUnit + (4 * k + 2) / kHalves);
            mma_f16(sums[m], V::low(x0, f0), V::low(x1, f1), V::high(V::upper_bytes(x0), f0),
                    V::high(V::upper_bytes(x1), f1), ps[t][group][0], ps[t][group][1]);
          }
        }
      }
    }
  }

  // The 32 bytes whose rows meet p in `accumulate`: V's mins, ones, or zeros.
  static __device__ __forceinline__ const char* mins_or_ones(const char* block,
                                                             const char* ones_and_zeros, int g,
                                                             int j) {
    if (g < kVGroups) return block + kLayout.v_min + g * 128 + j * 32;
    return ones_and_zeros + (g == kVGroups ? 0 : 32);
  }

  static __device__ __forceinline__ void to_values(Running& running,
                                                   SoftmaxState<kHeadDim / 16>& state) {
    auto& sums = running.sums;
    take_lower_fields_off(sums);
#pragma unroll
    for (int m = 0; m < kHeadDim / 16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][i] *= kSubnormal / V::weight(2 * (m % 2) + i / 2);
    }
    state = running;
  }

  // A top code's sum is that of whole bytes until then.
  template <class Sum>
  static __device__ __forceinline__ void take_lower_fields_off(Sum (&sums)[kHeadDim / 16][4]) {
#pragma unroll
    for (int w = 0; w < kGroupsOfW; ++w) {
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const int top = f / V::kPerByte * V::kPerByte + V::kPerByte - 1;
        if (f == top) continue;
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          sums[2 * w + top / 2][2 * (top % 2) + column] -=
              sums[2 * w + f / 2][2 * (f % 2) + column];
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ void scale_query(const uint4& q, const uint4& scale,
                                                     std::uint32_t (&qs)[4]) {
#pragma unroll
    for (int f = 3; f >= 0; --f) {
      const std::uint32_t qf = component(q, f), sf = component(scale, f);
      if (K::is_top(f)) {
        qs[f] = half2_mul(qf, sf);
      } else {
        const int top = f / K::kPerByte * K::kPerByte + K::kPerByte - 1;
        qs[f] = half2_fma(qf, sf, half2_negate(qs[top]));
      }
    }
  }
};

}  // namespace kvferry::kernels
