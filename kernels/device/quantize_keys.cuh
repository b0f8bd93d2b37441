#pragma once

#include <cstdint>

#include "kernels/device/chunk_check.cuh"
#include "kernels/device/code_words.cuh"
#include "kernels/device/fault.cuh"
#include "kernels/device/values.cuh"

// Keys, per channel over GK tokens. One warp makes all words of 32 channels (64 at 1 and 3 bits)
// and 64 tokens: lane (g, j) reads the 8 channels from 8 * j on of tokens 16 * tile + 8 * r + g.
namespace kvferry::kernels {

// Eight lanes with the same j hold extremes of the same 8 channels: afterwards lane (g, j) has
// those of channel 8 * j + g over all of them, in both halves of `low` and `high`.
template <codec::Raw16 kType>
__device__ __forceinline__ void reduce_channels(const std::uint32_t (&low)[4],
                                                const std::uint32_t (&high)[4], int lane,
                                                float& lowest, float& highest) {
  using P = Pair<kType>;
  const bool bit2 = (lane & 16) != 0, bit1 = (lane & 8) != 0, bit0 = (lane & 4) != 0;
  std::uint32_t a[2], b[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    a[i] = P::min(bit2 ? low[i + 2] : low[i],
                  __shfl_xor_sync(kAllLanes, bit2 ? low[i] : low[i + 2], 16));
    b[i] = P::max(bit2 ? high[i + 2] : high[i],
                  __shfl_xor_sync(kAllLanes, bit2 ? high[i] : high[i + 2], 16));
  }
  const std::uint32_t c =
      P::min(bit1 ? a[1] : a[0], __shfl_xor_sync(kAllLanes, bit1 ? a[0] : a[1], 8));
  const std::uint32_t d =
      P::max(bit1 ? b[1] : b[0], __shfl_xor_sync(kAllLanes, bit1 ? b[0] : b[1], 8));
  // (min, max) of the channel that this lane keeps and of the one that its partner keeps.
  const std::uint32_t mine = bit0 ? high_halves(c, d) : low_halves(c, d);
  const std::uint32_t other =
      __shfl_xor_sync(kAllLanes, bit0 ? low_halves(c, d) : high_halves(c, d), 4);
  lowest = P::low(P::min(mine, other));
  highest = P::high(P::max(mine, other));
}

// What a lane needs to know of the 8 channels that it reads.
struct RowScales {
  float min_value[8], inverse[8];
  bool needs_clamp;  // of the channel that this lane has computed
};

template <codec::Raw16 kType, int kHeadDim>
struct KeyTask {
  Rows rows;  // of K
  int w;      // channels [32 * w, 32 * w + 32)
  int lane;
  int group_tokens;       // GK
  std::uint32_t* words;   // of the block's K codes
  std::uint16_t* scales;  // [64 / GK, head_dim]
  std::uint16_t* mins;
  FaultSink faults;  // of this head's K

  // Values of tile i / 2 and r = i % 2.
  __device__ __forceinline__ void load(int at_w, uint4 (&x)[8]) const {
    const int channel = 32 * at_w + 8 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = load_once16(rows.at(16 * (i / 2) + 8 * (i % 2) + lane / 4) + channel);
    }
  }

  // Names the values of 32 channels that are not finite. Rare: reads them again.
  __device__ __forceinline__ void report(int at_w) const {
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      const int token = 16 * (i / 2) + 8 * (i % 2) + lane / 4;
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        const int channel = 32 * at_w + 8 * (lane % 4) + c;
        const std::uint32_t value = rows.at(token)[channel];
        if ((value & Pair<kType>::kInfinity) != Pair<kType>::kInfinity) continue;
        faults.value(token, channel);
      }
    }
  }

  // Codes of kTiles tiles that share scales, as group kGroup of their words.
  template <int kBits, int kGroup, int kTiles, bool kClamp>
  __device__ __forceinline__ void pack_codes(const uint4* x, const float (&min_value)[8],
                                             const float (&inverse)[8],
                                             CodeWords<kBits>* tiles) const {
    using P = Pair<kType>;
    constexpr auto kLevels = static_cast<float>((1 << kBits) - 1);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4& v = x[2 * t + r];
        const std::uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          tiles[t].add(
              CodeWords<kBits>::place(kGroup, f, 0, r),
              biased_code<kClamp>(P::low(pairs[f]), min_value[2 * f], inverse[2 * f], kLevels));
          tiles[t].add(CodeWords<kBits>::place(kGroup, f, 1, r),
                       biased_code<kClamp>(P::high(pairs[f]), min_value[2 * f + 1],
                                           inverse[2 * f + 1], kLevels));
        }
      }
    }
  }

  template <int kBits, int kGroup, int kTiles>
  __device__ __forceinline__ void pack(const uint4* x, const RowScales& row,
                                       CodeWords<kBits>* tiles) const {
    if (__any_sync(kAllLanes, row.needs_clamp)) {
      pack_codes<kBits, kGroup, kTiles, true>(x, row.min_value, row.inverse, tiles);
    } else {
      pack_codes<kBits, kGroup, kTiles, false>(x, row.min_value, row.inverse, tiles);
    }
  }

  // Scale and min of this lane's channel in row `row`, to the block and to all lanes that need
  // them.
  template <int kBits>
  __device__ __forceinline__ bool scale_row(int at_w, int row, const std::uint32_t (&low)[4],
                                            const std::uint32_t (&high)[4], RowScales& out) const {
    constexpr auto kLevels = static_cast<float>((1 << kBits) - 1);
    float lowest, highest;
    reduce_channels<kType>(low, high, lane, lowest, highest);
    const GroupScale group = make_group_scale(lowest, highest, kLevels);
    const int channel = 32 * at_w + 8 * (lane % 4) + lane / 4;
    scales[row * kHeadDim + channel] = group.scale;
    mins[row * kHeadDim + channel] = group.min;
    if (!group.fits) faults.scale(row * group_tokens, channel);
    out.needs_clamp = group.needs_clamp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      out.min_value[i] = __shfl_sync(kAllLanes, group.min_value, 4 * i + lane % 4);
      out.inverse[i] = __shfl_sync(kAllLanes, group.inverse, 4 * i + lane % 4);
    }
    return !(isfinite(lowest) && isfinite(highest));
  }

  template <int kBits, int kGroup>
  __device__ __forceinline__ void add_group(int at_w, CodeWords<kBits> (&tiles)[4]) const {
    using P = Pair<kType>;
    uint4 x[8];
    load(at_w, x);
    std::uint32_t low[2][4], high[2][4];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint4* v = x + 4 * row;
      low[row][0] = P::min(P::min(v[0].x, v[1].x), P::min(v[2].x, v[3].x));
      low[row][1] = P::min(P::min(v[0].y, v[1].y), P::min(v[2].y, v[3].y));
      low[row][2] = P::min(P::min(v[0].z, v[1].z), P::min(v[2].z, v[3].z));
      low[row][3] = P::min(P::min(v[0].w, v[1].w), P::min(v[2].w, v[3].w));
      high[row][0] = P::max(P::max(v[0].x, v[1].x), P::max(v[2].x, v[3].x));
      high[row][1] = P::max(P::max(v[0].y, v[1].y), P::max(v[2].y, v[3].y));
      high[row][2] = P::max(P::max(v[0].z, v[1].z), P::max(v[2].z, v[3].z));
      high[row][3] = P::max(P::max(v[0].w, v[1].w), P::max(v[2].w, v[3].w));
    }
    RowScales scale;
    bool broken = false;
    if (group_tokens == format::kTokens) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        low[0][i] = P::min(low[0][i], low[1][i]);
        high[0][i] = P::max(high[0][i], high[1][i]);
      }
      broken = scale_row<kBits>(at_w, 0, low[0], high[0], scale);
      pack<kBits, kGroup, 4>(x, scale, tiles);
    } else {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        broken |= scale_row<kBits>(at_w, row, low[row], high[row], scale);
        pack<kBits, kGroup, 2>(x + 4 * row, scale, tiles + 2 * row);
      }
    }
    if (__any_sync(kAllLanes, broken)) report(at_w);
  }

  template <int kBits>
  __device__ __forceinline__ void store(const CodeWords<kBits> (&tiles)[4], int word_base,
                                        int word_step) const {
#pragma unroll
    for (int i = 0; i < CodeWords<kBits>::kWords; ++i) {
      *reinterpret_cast<uint4*>(words + word_base + i * word_step + lane * format::kSlots) =
          make_uint4(tiles[0].word[i], tiles[1].word[i], tiles[2].word[i], tiles[3].word[i]);
    }
  }

  // The last 32 channels of a head of 96: two lanes that differ in g % 2 fill one word.
  template <int kBits>
  __device__ __forceinline__ void quantize_odd_group() const {
    // Both forms, of which each lane keeps one. The values come from the cache the second time.
    CodeWords<kBits> tiles[4], second[4];
    add_group<kBits, 0>(w, tiles);
    add_group<kBits, 1>(w, second);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      tiles[t].template finish<0, 1>();
      second[t].template finish<1, 1>();
#pragma unroll
      for (int i = 0; i < CodeWords<kBits>::kWords; ++i) {
        const std::uint32_t mine = (lane & 4) != 0 ? second[t].word[i] : tiles[t].word[i];
        tiles[t].word[i] = mine | __shfl_xor_sync(kAllLanes, mine, 4);
      }
    }
    if ((lane & 4) != 0) return;
    const int at = w / 2 * format::kPlaneWords + (lane / 8 * 4 + lane % 4) * format::kSlots;
#pragma unroll
    for (int i = 0; i < CodeWords<kBits>::kWords; ++i) {
      *reinterpret_cast<uint4*>(words + at + i * 2 * kHeadDim) =
          make_uint4(tiles[0].word[i], tiles[1].word[i], tiles[2].word[i], tiles[3].word[i]);
    }
  }
  template <int kBits>
  __device__ __forceinline__ void quantize() const {
    using Words = CodeWords<kBits>;
    if constexpr (Words::kShared) {
      if (w % 2 != 0) return;  // made with the group before
      if (kHeadDim == 96 && w == 2) {
        quantize_odd_group<kBits>();
        return;
      }
      Words tiles[4];
      add_group<kBits, 0>(w, tiles);
      add_group<kBits, 1>(w + 1, tiles);
#pragma unroll
      for (int t = 0; t < 4; ++t) tiles[t].template finish<0, 2>();
      store<kBits>(tiles, w / 2 * format::kPlaneWords, 2 * kHeadDim);
    } else {
      Words tiles[4];
      add_group<kBits, 0>(w, tiles);
#pragma unroll
      for (int t = 0; t < 4; ++t) tiles[t].template finish<0, 1>();
      store<kBits>(tiles, w * Words::kWords * format::kPlaneWords, format::kPlaneWords);
    }
  }
};

}  // namespace kvferry::kernels
