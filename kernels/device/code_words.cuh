#pragma once

#include <cstdint>

#include "kernels/device/group_scale.cuh"
#include "kvcodec/format.h"

// How codes become words, for one lane and one tile: the inside of docs/format.md's words. A lane
// has the codes (w, f, h, r) of its tile in registers and needs no other lane's, but at head_dim 96
// with 1 and 3 bits.
namespace kvferry::kernels {

namespace format = codec::format;

// Words of the codes of one w (two at 1 and 3 bits, which share them) and one tile.
template <int kBits>
struct CodeWords {
  static constexpr bool kShared = kBits == 1 || kBits == 3;
  static constexpr int kGroups = kShared ? 2 : 1;  // groups of 32 channels
  static constexpr int kWords = kBits == 1 ? 1 : kBits == 3 ? 3 : kBits / 2;
  static constexpr std::uint32_t kMask = (1u << kBits) - 1;

  std::uint32_t word[kWords] = {};

  struct Place {
    int word, shift;
    bool spread;
  };
  // Of the code with field f, half h and byte r in group s of kGroups.
  static constexpr Place place(int s, int f, int h, int r) {
    const int p = 4 * s + f;
    if (kBits == 1) return {0, 16 * h + 8 * r + p, false};
    if (kBits == 3) {
      if (p < 6) return {p / 2, 16 * h + 9 * r + 3 * (p % 2), false};
      if (p == 6) return {r, 16 * h + 6, false};
      return r == 0 ? Place{2, 16 * h + 6, false} : Place{0, 16 * h + 15, true};
    }
    constexpr int kFields = kShared ? 1 : 8 / kBits;
    return {f / kFields, 16 * h + 8 * r + kBits * (f % kFields), false};
  }

  // `biased` is kRounderBits + the code. The bias of all codes of a word is taken off by finish().
  __device__ __forceinline__ void add(Place at, std::uint32_t biased) {
    if (at.spread) {
      const std::uint32_t code = biased & kMask;
#pragma unroll
      for (int i = 0; i < kWords; ++i) word[i] += (code >> i & 1u) << at.shift;
    } else {
      word[at.word] += biased << at.shift;
    }
  }
  // What the biases of groups [0, groups) have added to word `i`.
  static constexpr std::uint32_t bias(int i, int first_group, int groups) {
    std::uint32_t sum = 0;
    for (int s = first_group; s < first_group + groups; ++s) {
      for (int f = 0; f < 4; ++f) {
        for (int h = 0; h < 2; ++h) {
          for (int r = 0; r < 2; ++r) {
            const Place at = place(s, f, h, r);
            if (!at.spread && at.word == i) sum += kRounderBits << at.shift;
          }
        }
      }
    }
    return sum;
  }
  template <int kFirst, int kCount>
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] -= bias(i, kFirst, kCount);
  }
};

// The same places as kvcodec/format.h says, for every cell of a head of 256.
template <int kBits>
constexpr bool PlacesAreThoseOfTheFormat() {
  constexpr int kHeadDim = 256;
  using Words = CodeWords<kBits>;
  for (int w = 0; w < kHeadDim / 32; ++w) {
    for (int f = 0; f < 4; ++f) {
      for (int h = 0; h < 2; ++h) {
        for (int r = 0; r < 2; ++r) {
          const auto at = Words::place(w % Words::kGroups, f, h, r);
          const format::CodePlace want = format::KPlace(kBits, kHeadDim, 8 * r, 32 * w + 2 * f + h);
          const int first = w / Words::kGroups * (Words::kShared ? 1 : Words::kWords);
          const int word = Words::kShared ? first * format::kPlaneWords + at.word * 2 * kHeadDim
                                          : (first + at.word) * format::kPlaneWords;
          if (word != want.word || at.shift != want.shift || at.spread != (want.spread != 0)) {
            return false;
          }
        }
      }
    }
  }
  return true;
}
static_assert(PlacesAreThoseOfTheFormat<1>() && PlacesAreThoseOfTheFormat<2>() &&
              PlacesAreThoseOfTheFormat<3>() && PlacesAreThoseOfTheFormat<4>() &&
              PlacesAreThoseOfTheFormat<8>());

}  // namespace kvferry::kernels
