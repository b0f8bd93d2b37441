#pragma once

#include <cstdint>

#include "kernels/device/chunk_check.cuh"
#include "kernels/device/code_words.cuh"
#include "kernels/device/fault.cuh"
#include "kernels/device/values.cuh"
#include "kernels/device/write_block.cuh"

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
  float2* exchange;  // [32], of this warp
  CodeSlabs slabs;
  FaultSink faults;  // of this head's K

  // Two groups share words at 1 and 3 bits: one warp makes both.
  static __device__ __forceinline__ bool makes(int bits, int at_w) {
    return (bits != 1 && bits != 3) || at_w % 2 == 0;
  }
  // Values of tile i / 2 and r = i % 2.
  using Values = uint4[8];
  static __device__ __forceinline__ void load(const Rows& rows, int at_w, int lane, Values& x) {
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
    __syncwarp();  // what was there before has been read
    exchange[8 * (lane % 4) + lane / 4] = make_float2(group.min_value, group.inverse);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float4 pair = *reinterpret_cast<const float4*>(exchange + 8 * (lane % 4) + i);
      out.min_value[i] = pair.x, out.inverse[i] = pair.y;
      out.min_value[i + 1] = pair.z, out.inverse[i + 1] = pair.w;
    }
    return !(isfinite(lowest) && isfinite(highest));
  }

  // The extremes of kRows rows, pair by pair of this lane's channels.
  template <int kRows>
  static __device__ __forceinline__ void extremes(const uint4* x, std::uint32_t (&low)[4],
                                                  std::uint32_t (&high)[4]) {
    using P = Pair<kType>;
    low[0] = high[0] = x[0].x, low[1] = high[1] = x[0].y;
    low[2] = high[2] = x[0].z, low[3] = high[3] = x[0].w;
#pragma unroll
    for (int i = 1; i < kRows; ++i) {
      const std::uint32_t pairs[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        low[c] = P::min(low[c], pairs[c]);
        high[c] = P::max(high[c], pairs[c]);
      }
    }
  }

  // `x`: the values of channels [32 * at_w, 32 * at_w + 32).
  template <int kBits, int kGroup>
  __device__ __forceinline__ void add_group(int at_w, const Values& x,
                                            CodeWords<kBits> (&tiles)[4]) const {
    std::uint32_t low[4], high[4];
    RowScales scale;
    bool broken = false;
    if (group_tokens == format::kTokens) {
      extremes<8>(x, low, high);
      broken = scale_row<kBits>(at_w, 0, low, high, scale);
      pack<kBits, kGroup, 4>(x, scale, tiles);
    } else {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        extremes<4>(x + 4 * row, low, high);
        broken |= scale_row<kBits>(at_w, row, low, high, scale);
        pack<kBits, kGroup, 2>(x + 4 * row, scale, tiles + 2 * row);
      }
    }
    if (__any_sync(kAllLanes, broken)) report(at_w);
  }

  // Word i of each tile, as the block has them.
  template <int kBits>
  static __device__ __forceinline__ uint4 piece(const CodeWords<kBits> (&tiles)[4], int i) {
    return make_uint4(tiles[0].word[i], tiles[1].word[i], tiles[2].word[i], tiles[3].word[i]);
  }

  // The last 32 channels of a head of 96: two lanes that differ in g % 2 fill one word.
  template <int kBits>
  __device__ __forceinline__ void quantize_odd_group(const Values& x) const {
    // Both forms, of which each lane keeps one.
    CodeWords<kBits> tiles[4], second[4];
    add_group<kBits, 0>(w, x, tiles);
    add_group<kBits, 1>(w, x, second);
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
      *reinterpret_cast<uint4*>(words + at + i * 2 * kHeadDim) = piece<kBits>(tiles, i);
    }
  }

  // Whether the codes are slabs that the check's tables have matrices for, with what follows them
  // in the side: at head_dim 96 scales and mins are no half slabs.
  template <int kBits>
  static constexpr bool kSlabs =
      !CodeWords<kBits>::kShared && kHeadDim != 96 &&
      kHeadDim * kBits / 64 + (8 * kHeadDim + kCheckSlabBytes - 1) / kCheckSlabBytes <=
          kCheckRunSlabs;

  // Returns whether the codes have gone to the page, else they are in shared memory. `x`: load().
  template <int kBits>
  __device__ __forceinline__ bool quantize(const Values& x, RunCheck& check) const {
    using Words = CodeWords<kBits>;
    Words tiles[4];
    if constexpr (Words::kShared) {
      if (kHeadDim == 96 && w == 2) {
        quantize_odd_group<kBits>(x);
        return false;
      }
      add_group<kBits, 0>(w, x, tiles);
      Values next;
      load(rows, w + 1, lane, next);
      add_group<kBits, 1>(w + 1, next, tiles);
#pragma unroll
      for (int t = 0; t < 4; ++t) tiles[t].template finish<0, 2>();
#pragma unroll
      for (int i = 0; i < Words::kWords; ++i) {
        const int at = w / 2 * format::kPlaneWords + i * 2 * kHeadDim + lane * format::kSlots;
        *reinterpret_cast<uint4*>(words + at) = piece<kBits>(tiles, i);
      }
      return false;
    } else {
      add_group<kBits, 0>(w, x, tiles);
#pragma unroll
      for (int t = 0; t < 4; ++t) tiles[t].template finish<0, 1>();
#pragma unroll
      for (int i = 0; i < Words::kWords; ++i) {
        const int slab = w * Words::kWords + i;
        if constexpr (kSlabs<kBits>) {
          slabs.put(slab, piece<kBits>(tiles, i), check);
        } else {
          reinterpret_cast<uint4*>(words + slab * format::kPlaneWords)[lane] =
              piece<kBits>(tiles, i);
        }
      }
      return kSlabs<kBits>;
    }
  }
};

}  // namespace kvferry::kernels
