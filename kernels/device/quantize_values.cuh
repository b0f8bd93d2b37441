#pragma once

#include <cstdint>

#include "kernels/device/chunk_check.cuh"
#include "kernels/device/code_words.cuh"
#include "kernels/device/fault.cuh"
#include "kernels/device/values.cuh"
#include "kernels/device/write_block.cuh"

// Values, per token over GV channels. One warp makes all words of a tile of 16 tokens: lane (g, j)
// reads the channels 32 * w + 4 * g + {0..3} of its four tokens q = 2 * r + h, 8 * r + 2 * j + h.
namespace kvferry::kernels {

template <codec::Raw16 kType, int kHeadDim, int kGroupChannels>
struct ValueTask {
  static constexpr int kGroups32 = kHeadDim / 32;        // w
  static constexpr int kPerGroup = kGroupChannels / 32;  // w of one group
  static constexpr int kGroups = kHeadDim / kGroupChannels;
  static constexpr int kItems = 4 * kGroups;  // (q, group) that the eight lanes of one j share out
  // Halved as long as that goes evenly: what a lane computes scales for.
  static constexpr int kAfter16 = kItems / 2;
  static constexpr int kAfter8 = kAfter16 % 2 == 0 ? kAfter16 / 2 : kAfter16;
  static constexpr int kOwn = kAfter8 % 2 == 0 ? kAfter8 / 2 : kAfter8;
  static_assert(kAfter16 % 2 == 0, "two of three steps always halve");

  Rows rows;  // of V
  int tile;
  int lane;
  std::uint32_t* words;   // of the block's V codes
  std::uint16_t* scales;  // [head_dim / GV, 64]
  std::uint16_t* mins;
  float2* exchange;  // [kGroups, 16], of this warp
  CodeSlabs slabs;
  FaultSink faults;  // of this head's V

  static constexpr int token(int tile, int lane, int q) {
    return 16 * tile + 8 * (q / 2) + 2 * (lane % 4) + q % 2;
  }

  // format::VScalePosition of that token.
  static constexpr unsigned scale_position(unsigned tile, unsigned lane, unsigned q) {
    return lane % 4 * 16 + tile / 2 * 8 + q / 2 * 4 + tile % 2 * 2 + q % 2;
  }
  // Which of the 16 tokens of the tile it is.
  static __device__ __forceinline__ unsigned exchange_place(unsigned lane, unsigned q) {
    return q / 2 * 8 + lane % 4 * 2 + q % 2;
  }

  // Names the values of 16 tokens that are not finite. Rare: reads them again.
  __device__ __forceinline__ void report() const {
#pragma unroll 1
    for (int q = 0; q < 4; ++q) {
      const int at_token = token(tile, lane, q);
#pragma unroll 1
      for (int c = 0; c < kHeadDim / 8; ++c) {
        const int channel = 32 * (c / 4) + 4 * (lane / 4) + c % 4;
        const std::uint32_t value = rows.at(at_token)[channel];
        if ((value & Pair<kType>::kInfinity) != Pair<kType>::kInfinity) continue;
        faults.value(at_token, channel);
      }
    }
  }

  // (min, -max) of item `i` = q * kGroups + group over this lane's channels.
  __device__ __forceinline__ std::uint32_t extremes(const uint2 (&x)[kGroups32][4], int i) const {
    using P = Pair<kType>;
    const int q = i / kGroups, begin = i % kGroups * kPerGroup;
    std::uint32_t low = P::min(x[begin][q].x, x[begin][q].y);
    std::uint32_t high = P::max(x[begin][q].x, x[begin][q].y);
#pragma unroll
    for (int w = 1; w < kPerGroup; ++w) {
      low = P::min(low, P::min(x[begin + w][q].x, x[begin + w][q].y));
      high = P::max(high, P::max(x[begin + w][q].x, x[begin + w][q].y));
    }
    high ^= 0x80008000u;
    return P::min(low_halves(low, high), high_halves(low, high));
  }

  // One step of sharing out: lanes that differ in `bit` merge, and each keeps half where kHalve.
  template <int kCount, bool kHalve>
  __device__ __forceinline__ void merge(std::uint32_t (&p)[kItems], int bit) const {
    using P = Pair<kType>;
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < (kHalve ? kCount / 2 : kCount); ++i) {
      const std::uint32_t keep = kHalve && upper ? p[i + kCount / 2] : p[i];
      const std::uint32_t send = kHalve && !upper ? p[i + kCount / 2] : p[i];
      p[i] = P::min(keep, __shfl_xor_sync(kAllLanes, send, bit));
    }
  }
  static constexpr bool kHalve8 = kAfter8 != kAfter16, kHalve4 = kOwn != kAfter8;

  // The first item that lane group g owns.
  static __device__ __forceinline__ int first_item(int g) {
    return (g / 4) * kAfter16 + (kHalve8 ? g / 2 % 2 * kAfter8 : 0) + (kHalve4 ? g % 2 * kOwn : 0);
  }

  // Returns whether any code of the tile needs a clamp.
  template <int kBits>
  __device__ __forceinline__ bool scale(const uint2 (&x)[kGroups32][4]) const {
    using P = Pair<kType>;
    constexpr auto kLevels = static_cast<float>((1 << kBits) - 1);
    std::uint32_t p[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) p[i] = extremes(x, i);
    merge<kItems, true>(p, 16);
    merge<kAfter16, kHalve8>(p, 8);
    merge<kAfter8, kHalve4>(p, 4);
    bool broken = false, clamp = false;
    const bool writes = kHalve4 || (lane & 4) == 0;
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int item = first_item(lane / 4) + k;
      const float lowest = P::low(p[k]), highest = -P::high(p[k]);
      const GroupScale group = make_group_scale(lowest, highest, kLevels);
      clamp |= group.needs_clamp();
      broken |= !(isfinite(lowest) && isfinite(highest));
      if (!writes) continue;
      const unsigned q = static_cast<unsigned>(item) / kGroups;
      const unsigned of_group = static_cast<unsigned>(item) % kGroups;
      const int at = of_group * format::kTokens + scale_position(tile, lane, q);
      scales[at] = group.scale;
      mins[at] = group.min;
      exchange[of_group * 16 + exchange_place(lane, q)] =
          make_float2(group.min_value, group.inverse);
      if (!group.fits) faults.scale(token(tile, lane, q), 0);
    }
    __syncwarp();
    if (__any_sync(kAllLanes, broken)) report();
    return __any_sync(kAllLanes, clamp);
  }

  // Codes of group w of 32 channels, as group kGroup of their words.
  template <int kBits, int kGroup, bool kClamp>
  __device__ __forceinline__ void add_group(const uint2 (&x)[4], const float (&min_value)[4],
                                            const float (&inverse)[4],
                                            CodeWords<kBits>& out) const {
    using P = Pair<kType>;
    constexpr auto kLevels = static_cast<float>((1 << kBits) - 1);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const std::uint32_t pairs[2] = {x[q].x, x[q].y};
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const float value = f % 2 == 0 ? P::low(pairs[f / 2]) : P::high(pairs[f / 2]);
        out.add(CodeWords<kBits>::place(kGroup, f, q % 2, q / 2),
                biased_code<kClamp>(value, min_value[q], inverse[q], kLevels));
      }
    }
  }

  // Min and inverse scale of the four tokens in w's group.
  __device__ __forceinline__ void fetch(int w, float (&min_value)[4], float (&inverse)[4]) const {
#pragma unroll
    for (int q = 0; q < 4; q += 2) {
      const float4 pair =
          *reinterpret_cast<const float4*>(exchange + w / kPerGroup * 16 + exchange_place(lane, q));
      min_value[q] = pair.x, inverse[q] = pair.y;
      min_value[q + 1] = pair.z, inverse[q + 1] = pair.w;
    }
  }

  // The region has kStreams streams of kCount words per lane and tile.
  template <int kCount>
  __device__ __forceinline__ void store(const std::uint32_t (&n)[kCount], int base) const {
    constexpr int kRun = format::internal::Gcd4(kCount);
#pragma unroll
    for (int i = 0; i < kCount; i += kRun) {
      std::uint32_t* to = words + base + format::internal::VWord(kCount, i, lane, tile);
      if constexpr (kRun == 4) {
        *reinterpret_cast<uint4*>(to) = make_uint4(n[i], n[i + 1], n[i + 2], n[i + 3]);
      } else if constexpr (kRun == 2) {
        *reinterpret_cast<uint2*>(to) = make_uint2(n[i], n[i + 1]);
      } else {
        *to = n[i];
      }
    }
  }

  // Words of a lane and tile; whether they are slabs that the check's tables have matrices for,
  // with what follows them in the side.
  template <int kBits>
  static constexpr int kCount =
      CodeWords<kBits>::kShared ? kHeadDim / 64 : kGroups32* CodeWords<kBits>::kWords;
  template <int kBits>
  static constexpr bool kSlabs = !CodeWords<kBits>::kShared && kCount<kBits> % 4 == 0 &&
                                 kCount<kBits> + (kGroups + 1) / 2 <= kCheckRunSlabs;

  using Values = uint2[kGroups32][4];
  static __device__ __forceinline__ void load(const Rows& rows, int tile, int lane, Values& x) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const std::uint16_t* row = rows.at(token(tile, lane, q)) + 4 * (lane / 4);
#pragma unroll
      for (int w = 0; w < kGroups32; ++w) x[w][q] = load_once8(row + 32 * w);
    }
  }

  // Returns whether the codes have gone to the page, else they are in shared memory. `x`: load().
  template <int kBits>
  __device__ __forceinline__ bool quantize(const Values& x, RunCheck& check) const {
    if (scale<kBits>(x)) {
      pack<kBits, true>(x, check);
    } else {
      pack<kBits, false>(x, check);
    }
    return kSlabs<kBits>;
  }

  template <int kBits, bool kClamp>
  __device__ __forceinline__ void pack(const uint2 (&x)[kGroups32][4], RunCheck& check) const {
    using Words = CodeWords<kBits>;
    constexpr int kStreams = kBits == 3 ? 3 : 1;
    std::uint32_t out[kStreams][kCount<kBits>];
    float min_value[4], inverse[4];
#pragma unroll
    for (int w = 0; w < kGroups32 / Words::kGroups * Words::kGroups; w += Words::kGroups) {
      Words made;
      if (w % kPerGroup == 0) fetch(w, min_value, inverse);
      add_group<kBits, 0, kClamp>(x[w], min_value, inverse, made);
      if constexpr (Words::kShared) {
        if ((w + 1) % kPerGroup == 0) fetch(w + 1, min_value, inverse);
        add_group<kBits, 1, kClamp>(x[w + 1], min_value, inverse, made);
      }
      made.template finish<0, Words::kGroups>();
#pragma unroll
      for (int i = 0; i < Words::kWords; ++i) {
        if constexpr (Words::kShared) {
          out[i][w / 2] = made.word[i];
        } else {
          out[0][w * Words::kWords + i] = made.word[i];
        }
      }
    }
    if constexpr (kSlabs<kBits>) {
      constexpr int kOfTile = kCount<kBits> / 4;
#pragma unroll
      for (int i = 0; i < kOfTile; ++i) {
        const std::uint32_t* n = out[0] + 4 * i;
        slabs.put(tile * kOfTile + i, make_uint4(n[0], n[1], n[2], n[3]), check);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kStreams; ++i) store<kCount<kBits>>(out[i], i * 2 * kHeadDim);
    }
    if constexpr (Words::kShared && kGroups32 % 2 != 0) {
      fetch(kGroups32 - 1, min_value, inverse);
      quantize_odd_group<kBits, kClamp>(x[kGroups32 - 1], min_value, inverse);
    }
  }

  // The last 32 channels of a head of 96: two lanes that differ in g % 2 fill one word.
  template <int kBits, bool kClamp>
  __device__ __forceinline__ void quantize_odd_group(const uint2 (&x)[4],
                                                     const float (&min_value)[4],
                                                     const float (&inverse)[4]) const {
    CodeWords<kBits> first, second;
    add_group<kBits, 0, kClamp>(x, min_value, inverse, first);
    add_group<kBits, 1, kClamp>(x, min_value, inverse, second);
    first.template finish<0, 1>();
    second.template finish<1, 1>();
    const int at =
        kGroups32 / 2 * format::kPlaneWords + (lane / 8 * 4 + lane % 4) * format::kSlots + tile;
#pragma unroll
    for (int i = 0; i < CodeWords<kBits>::kWords; ++i) {
      const std::uint32_t mine = (lane & 4) != 0 ? second.word[i] : first.word[i];
      const std::uint32_t both = mine | __shfl_xor_sync(kAllLanes, mine, 4);
      if ((lane & 4) == 0) words[at + i * 2 * kHeadDim] = both;
    }
  }
};

constexpr bool ScalePositionsAreThoseOfTheFormat() {
  using Task = ValueTask<codec::Raw16::kBf16, 128, 128>;
  for (int i = 0; i < format::kTokens; ++i) {
    const int tile = i / 16, lane = i / 4 % 4, q = i % 4;
    const int want = format::VScalePosition(Task::token(tile, lane, q));
    if (Task::scale_position(tile, lane, q) != static_cast<unsigned>(want)) return false;
  }
  return true;
}
static_assert(ScalePositionsAreThoseOfTheFormat());

}  // namespace kvferry::kernels
