#pragma once

#include <cstdint>

#include "kernels/device/attention_variant.cuh"
#include "kernels/device/block_ring.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/plain_codes.cuh"
#include "kernels/device/softmax_state.cuh"
#include "kernels/device/values.cuh"
#include "kvcodec/format.h"

namespace kvferry::kernels {

// Attention on blocks of kind kCoupled (CQ, arXiv 2405.03917): a code is looked up in its codebook,
// and its centroid is the operand of mma.sync. Codebooks stand in shared memory where they fit: of
// 16 centroids with a column for every lane, so that no two lanes ever meet in a bank, of 256 as
// they are. Larger ones the first level cache holds as far as it can.
// Keys turn by the place of their token in the block, in halves; the query turned back by the place
// of the block in the sequence, in fp32, once per block.
template <int kHeadDimension, int kChannels, int kBits>
struct CoupledCodes : PlainCodes<kHeadDimension> {
  using PlainCodes<kHeadDimension>::kHeadDim, PlainCodes<kHeadDimension>::kOnes;
  using typename PlainCodes<kHeadDimension>::Running;
  static constexpr codec::format::CoupledLayout kLayout =
      codec::format::CoupledBlock(kHeadDim, kChannels, kBits);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = kBits == 8 && kChannels == 2 ? 1 : 2;  // for the codebooks
  template <int kStages>
  using Ring = BlockRing<kStages, kBytes>;
  static constexpr int kSlotBytes = kBytes;

  // In columns: of K [channel / 32 * 4 + group % 4][code][lane], of V
  // [channel / 32 * 2 + group % 2][code][lane], two halves each.
  static constexpr bool kInColumns = kChannels == 2 && kBits == 4, kWhole = kBits == 8;
  static constexpr int kStepBytes = 128 << kBits;
  static constexpr int kKeyTableBytes =
      kInColumns ? kHeadDim / 32 * 4 * kStepBytes : 2 * kHeadDim << kBits;
  static constexpr int kTableBytes = kInColumns ? kKeyTableBytes * 3 / 2
                                     : kWhole   ? kKeyTableBytes * 2
                                                : 0;

  template <int kThreads>
  static __device__ __forceinline__ void fill_tables(char* to, const AttentionArgs& args,
                                                     const AttentionPiece& piece) {
    const CoupledTables& tables = args.coupled;
    const std::uint16_t* books = tables.centroids + 2 * tables.side_values * piece.kv_head;
    if constexpr (kWhole) {  // K's and V's lie one behind the other
      for (int i = threadIdx.x; i < kTableBytes / 16; i += kThreads) {
        reinterpret_cast<uint4*>(to)[i] = __ldg(reinterpret_cast<const uint4*>(books) + i);
      }
    } else {
      fill_columns<kThreads>(to, books, books + tables.side_values);
    }
  }

  static __device__ __forceinline__ void attend(const char* block, const char*, const char* q_plain,
                                                const char*, bool, const float (&unit)[2],
                                                const float (&)[2], int lane, const BlockSite& site,
                                                Running& state) {
    const CoupledTables& tables = site.args.coupled;
    const int g = lane / 4, j = lane % 4;
    const Books keys = {tables.centroids + 2 * tables.side_values * site.kv_head,
                        site.tables + (kInColumns ? lane * 4 : 0)};
    const Books values = {keys.global + tables.side_values, keys.shared + kKeyTableBytes};
    std::uint32_t q[2 * kPairs][4];
    turn_query_back(q_plain, tables.frequencies, site.token(), g, j, q);

    float scores[4][4] = {};
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int w = 0; w < kPairs; ++w) {
        uint4 low[2], high[2];  // of rows g and g + 8
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int token = tile * 16 + r * 8 + g, channel = w * 32 + j * 8;
          const char* row = block + kLayout.k_codes + token * kLayout.row_bytes;
          const uint4 a = eight_values(row, channel, keys);
          const uint4 b = eight_values(row, channel + kHeadDim / 2, keys);
          const int turn = token * (kHeadDim / 2) + channel;
          const uint4 cos = __ldg(reinterpret_cast<const uint4*>(tables.half_cos + turn));
          const uint4 sin = __ldg(reinterpret_cast<const uint4*>(tables.half_sin + turn));
          low[r] = turned(a, cos, half4_negate(b), sin);
          high[r] = turned(b, cos, a, sin);
        }
        add_scores(scores[tile], low, q[w]);
        add_scores(scores[tile], high, q[kPairs + w]);
      }
    }
    const float no_offset[1][2] = {{0, 0}};
    std::uint32_t p[8];
    state.template exponentiate<4, 1>(scores, unit, no_offset, p);

    float totals[4] = {};
    const std::uint32_t ones = g == 0 ? kOnes : 0;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const std::uint32_t p0 = p[2 * tile], p1 = p[2 * tile + 1];
      mma_f16(totals, ones, 0, ones, 0, p0, p1);
      const char* rows = block + kLayout.v_codes + (tile * 16 + 2 * j) * kLayout.row_bytes;
#pragma unroll
      for (int w = 0; w < kHeadDim / 32; ++w) {
        uint2 even[2], odd[2];  // of tokens 2j and 2j + 1, and 8 further
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const char* row = rows + r * 8 * kLayout.row_bytes;
          even[r] = four_values(row, w * 32 + g * 4, values);
          odd[r] = four_values(row + kLayout.row_bytes, w * 32 + g * 4, values);
        }
        mma_f16(state.sums[2 * w], low_halves(even[0].x, odd[0].x),
                high_halves(even[0].x, odd[0].x), low_halves(even[1].x, odd[1].x),
                high_halves(even[1].x, odd[1].x), p0, p1);
        mma_f16(state.sums[2 * w + 1], low_halves(even[0].y, odd[0].y),
                high_halves(even[0].y, odd[0].y), low_halves(even[1].y, odd[1].y),
                high_halves(even[1].y, odd[1].y), p0, p1);
      }
    }
    state.totals[0] += totals[0];
    state.totals[1] += totals[1];
  }

 private:
  static constexpr int kPairs = kHeadDim / 64;  // groups of 32 channels that turn with another
  static constexpr int kCentroids = 1 << kBits;

  static __device__ __forceinline__ uint4 half4_negate(const uint4& a) {
    return {half2_negate(a.x), half2_negate(a.y), half2_negate(a.z), half2_negate(a.w)};
  }
  // a * cos + b * sin
  static __device__ __forceinline__ uint4 turned(const uint4& a, const uint4& cos, const uint4& b,
                                                 const uint4& sin) {
    return {
        half2_fma(b.x, sin.x, half2_mul(a.x, cos.x)), half2_fma(b.y, sin.y, half2_mul(a.y, cos.y)),
        half2_fma(b.z, sin.z, half2_mul(a.z, cos.z)), half2_fma(b.w, sin.w, half2_mul(a.w, cos.w))};
  }
  static __device__ __forceinline__ void add_scores(float (&scores)[4], const uint4 (&rows)[2],
                                                    const std::uint32_t (&q)[4]) {
    mma_f16(scores, rows[0].x, rows[1].x, rows[0].y, rows[1].y, q[0], q[1]);
    mma_f16(scores, rows[0].z, rows[1].z, rows[0].w, rows[1].w, q[2], q[3]);
  }

  template <int kThreads>
  static __device__ __forceinline__ void fill_columns(char* to, const std::uint16_t* keys,
                                                      const std::uint16_t* values) {
    const auto two = [](const std::uint16_t* book, int group, int code) {
      return __ldg(reinterpret_cast<const std::uint32_t*>(centroid(book, group, code)));
    };
    for (int i = threadIdx.x; i < kTableBytes / 16; i += kThreads) {  // four lanes of one g
      const int g = i % 8, code = i / 8 % kCentroids, step = i / 8 / kCentroids;
      uint4 lanes;
      if (step < kHeadDim / 32 * 4) {
        const int group = step / 4 * 16 + step % 4;
        lanes = {two(keys, group, code), two(keys, group + 4, code), two(keys, group + 8, code),
                 two(keys, group + 12, code)};
      } else {
        const int of_values = step - kHeadDim / 32 * 4;
        const std::uint32_t all = two(values, of_values / 2 * 16 + g * 2 + of_values % 2, code);
        lanes = {all, all, all, all};
      }
      *reinterpret_cast<uint4*>(to + i * 16) = lanes;
    }
  }

  // Of one side of a head.
  struct Books {
    const std::uint16_t* global;
    const char* shared;  // where in columns, at this lane's

    template <class Value>
    __device__ __forceinline__ Value load(int group, int code, int channel = 0) const {
      if constexpr (kWhole) {
        return *reinterpret_cast<const Value*>(
            shared + ((group * kCentroids + code) * kChannels + channel) * 2);
      } else {
        return __ldg(reinterpret_cast<const Value*>(centroid(global, group, code) + channel));
      }
    }
  };

  // The lane's channels of q, turned back by the angles of `token`. Lanes with the same j need the
  // same angles and share out their sines and cosines.
  static __device__ __forceinline__ void turn_query_back(const char* q_plain,
                                                         const float* frequencies,
                                                         std::int64_t token, int g, int j,
                                                         std::uint32_t (&q)[2 * kPairs][4]) {
    constexpr double kOverPi = 0.31830988618379067154;
    float own_cos[kPairs], own_sin[kPairs];  // of angles g * kPairs + i of kPairs * 8
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int angle = g * kPairs + i;
      const float frequency = __ldg(frequencies + angle / 8 * 32 + j * 8 + angle % 8);
      double turns = static_cast<double>(token) * static_cast<double>(frequency) * kOverPi;
      turns -= 2 * rint(turns * 0.5);
      sincospif(static_cast<float>(turns), &own_sin[i], &own_cos[i]);
    }
#pragma unroll
    for (int w = 0; w < kPairs; ++w) {
      const uint4 low = load_shared16(q_plain + w * 512);
      const uint4 high = load_shared16(q_plain + (w + kPairs) * 512);
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const float2 a = float2_from_half2(component(low, pair));
        const float2 b = float2_from_half2(component(high, pair));
        float cos[2], sin[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int angle = w * 8 + pair * 2 + i;
          const int from = angle / kPairs * 4 + j;
          cos[i] = __shfl_sync(~0u, own_cos[angle % kPairs], from);
          sin[i] = __shfl_sync(~0u, own_sin[angle % kPairs], from);
        }
        q[w][pair] = half2_pack(a.x * cos[0] + b.x * sin[0], a.y * cos[1] + b.y * sin[1]);
        q[kPairs + w][pair] = half2_pack(b.x * cos[0] - a.x * sin[0], b.y * cos[1] - a.y * sin[1]);
      }
    }
  }

  // The code of a group in a row.
  static __device__ __forceinline__ int code_of(const char* row, int group) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(row);
    if constexpr (kBits == 8) return bytes[group];
    if constexpr (kBits == 4) return bytes[group / 2] >> (4 * (group % 2)) & 15;
    const int bit = group * kBits;
    return (bytes[bit / 8] | bytes[bit / 8 + 1] << 8) >> (bit % 8) & (kCentroids - 1);
  }
  static __device__ __forceinline__ const std::uint16_t* centroid(const std::uint16_t* book,
                                                                  int group, int code) {
    return book + (group * kCentroids + code) * kChannels;
  }

  // A pair of channels out of shared memory: the code that stands at bit `bit` of `codes`.
  static __device__ __forceinline__ std::uint32_t look_up(const char* table, std::uint32_t codes,
                                                          int bit, int step) {
    const std::uint32_t at = (bit < 7 ? codes << (7 - bit) : codes >> (bit - 7)) &
                             static_cast<std::uint32_t>(kCentroids - 1) << 7;
    return *reinterpret_cast<const std::uint32_t*>(table + step * kStepBytes + at);
  }

  // Channels channel .. channel + 7 of the token of a row of K, and channel .. channel + 3 of V; of
  // a lane's own ones, j and g.
  static __device__ __forceinline__ uint4 eight_values(const char* row, int channel,
                                                       const Books& books) {
    const int group = channel / kChannels;
    if constexpr (kInColumns) {
      const std::uint32_t codes = *reinterpret_cast<const std::uint16_t*>(row + channel / 4);
      const int step = channel / 32 * 4;
      return {look_up(books.shared, codes, 0, step), look_up(books.shared, codes, 4, step + 1),
              look_up(books.shared, codes, 8, step + 2),
              look_up(books.shared, codes, 12, step + 3)};
    } else if constexpr (kChannels == 8) {
      return books.template load<uint4>(group, code_of(row, group));
    } else {
      const uint2 low = four_values(row, channel, books);
      const uint2 high = four_values(row, channel + 4, books);
      return {low.x, low.y, high.x, high.y};
    }
  }
  static __device__ __forceinline__ uint2 four_values(const char* row, int channel,
                                                      const Books& books) {
    const int group = channel / kChannels;
    if constexpr (kInColumns) {
      const std::uint32_t codes = *reinterpret_cast<const std::uint8_t*>(row + channel / 4);
      const int step = channel / 32 * 2;
      return {look_up(books.shared, codes, 0, step), look_up(books.shared, codes, 4, step + 1)};
    } else if constexpr (kChannels >= 4) {
      return books.template load<uint2>(group, code_of(row, group), channel % kChannels);
    } else {
      return {books.template load<std::uint32_t>(group, code_of(row, group)),
              books.template load<std::uint32_t>(group + 1, code_of(row, group + 1))};
    }
  }
};

template <int kHeadDim, int kChannels, int kBits>
AttentionVariant coupled_variant() {
  return make_variant<CoupledCodes<kHeadDim, kChannels, kBits>>(
      {.kind = codec::BlockKind::kCoupled, .head_dim = kHeadDim, .coupling = {kChannels, kBits}});
}

}  // namespace kvferry::kernels
