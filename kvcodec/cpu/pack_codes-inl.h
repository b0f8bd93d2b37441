// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_PACK_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_PACK_CODES_INL_H_
#undef KVFERRY_KVCODEC_CPU_PACK_CODES_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_PACK_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kvcodec/code_io.h"
#include "kvcodec/cpu/simd-inl.h"
#include "kvcodec/format.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Eight channels at a time: one (w, j) of the format, and what a 16-byte store of codes wants.
using DF = hn::CappedTag<float, 8>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DW = hn::Repartition<std::uint64_t, DU>;
using VF = hn::VFromD<DF>;
using VU = hn::VFromD<DU>;
constexpr int kLanesF = hn::MaxLanes(DF());
constexpr int kMaxHeadDim = 256;

// Working memory of one side of one head; small enough to stay in the first-level cache.
struct Workspace {
  // Codes as bytes, four channels of a token to a unit: [head_dim / 4][64 tokens].
  HWY_ALIGN std::uint32_t units[kMaxHeadDim / 4][kBlockTokens];
  // One entry per group, in the order of the scales in the block.
  HWY_ALIGN float low[8 * kBlockTokens], high[8 * kBlockTokens];
  HWY_ALIGN float min[8 * kBlockTokens], inverse[8 * kBlockTokens];
};

// Codes of four tokens and eight channels as bytes: in each 16, four channels of each token.
// Negative codes become 0.
HWY_INLINE hn::Vec256<std::uint8_t> JoinCodes(const hn::VFromD<DI> (&codes)[4]) {
  const __m256i low = _mm256_packs_epi32(codes[0].raw, codes[1].raw);
  const __m256i high = _mm256_packs_epi32(codes[2].raw, codes[3].raw);
  return hn::Vec256<std::uint8_t>{_mm256_packus_epi16(low, high)};
}
HWY_INLINE void StoreUnits(hn::Vec256<std::uint8_t> codes, std::uint32_t* units) {
  _mm_store_si128(reinterpret_cast<__m128i*>(units), _mm256_castsi256_si128(codes.raw));
  _mm_store_si128(reinterpret_cast<__m128i*>(units + kBlockTokens),
                  _mm256_extracti128_si256(codes.raw, 1));
}

// How the words of `bits` are grouped: bits 1 and 3 share one order, 3 bits in three streams.
template <int kBits>
struct Words {
  static constexpr int kStreams = kBits == 3 ? 3 : 1;
  static constexpr int PerTile(int head_dim) {
    return kBits == 1 || kBits == 3 ? head_dim / 64 : head_dim * kBits / 64;
  }
};

// Three words from `field(pair, r)`: the codes of both halves h in the low bits of each half of a
// word.
template <class Field>
HWY_INLINE void MakeTriple(Field field, VU* words) {
  const DU du;
  const VU last = field(7, 1), low = hn::Set(du, 0x00010001u);
  const VU middle[3] = {field(6, 0), field(6, 1), field(7, 0)};
  const VU bit[3] = {last, hn::ShiftRight<1>(last), hn::ShiftRight<2>(last)};
  for (int m = 0; m < 3; ++m) {
    VU word = hn::Or(field(2 * m, 0), hn::ShiftLeft<3>(field(2 * m + 1, 0)));
    word = hn::Or(word, hn::ShiftLeft<6>(middle[m]));
    word = hn::Or(word, hn::ShiftLeft<9>(field(2 * m, 1)));
    word = hn::Or(word, hn::ShiftLeft<12>(field(2 * m + 1, 1)));
    words[m] = hn::Or(word, hn::ShiftLeft<15>(hn::And(bit[m], low)));
  }
}

// h0 | h1 << 8 in the low 16 bits -> h0 | h1 << 16.
HWY_INLINE VU SpreadHalves(VU codes) {
  const DU du;
  return hn::Or(hn::And(codes, hn::Set(du, 0xffu)),
                hn::And(hn::ShiftLeft<8>(codes), hn::Set(du, 0xff0000u)));
}

// Words n of K for lane j and the eight g of `token` (a tile's begin): units hold [f0h0 f0h1 f1h0
// f1h1].
template <int kBits>
HWY_INLINE void KWords(const Workspace& work, int n, int j, int token, VU* words) {
  const DU du;
  const auto unit = [&](int w, int e, int r) HWY_ATTR {
    return hn::Load(du, &work.units[8 * w + 2 * j + e][token + 8 * r]);
  };
  if constexpr (kBits == 3) {
    MakeTriple(
        [&](int pair, int r) HWY_ATTR {
          const VU codes = unit(2 * n + pair / 4, pair % 4 / 2, r);
          return SpreadHalves(pair % 2 == 0 ? codes : hn::ShiftRight<16>(codes));
        },
        words);
  } else {
    const auto half = [&](int r) HWY_ATTR {  // all fields of byte r, both h
      const auto two = [&](int w, int e) HWY_ATTR {
        const VU codes = unit(w, e, r);
        return hn::Or(codes, hn::ShiftRight<16 - kBits % 16>(codes));
      };
      if constexpr (kBits == 8) {
        return hn::ShiftRightSame(unit(n / 4, n % 4 / 2, r), 16 * (n % 2));
      } else if constexpr (kBits == 4) {
        return two(n / 2, n % 2);
      } else if constexpr (kBits == 2) {
        return hn::Or(two(n, 0), hn::ShiftLeft<4>(two(n, 1)));
      } else {
        const VU low = hn::Or(two(2 * n, 0), hn::ShiftLeft<2>(two(2 * n, 1)));
        const VU high = hn::Or(two(2 * n + 1, 0), hn::ShiftLeft<2>(two(2 * n + 1, 1)));
        return hn::Or(low, hn::ShiftLeft<4>(high));
      }
    };
    words[0] = hn::Or(SpreadHalves(half(0)), hn::ShiftLeft<8>(SpreadHalves(half(1))));
  }
}

template <int kBits>
void PackK(const Workspace& work, int head_dim, std::byte* region) {
  const DU du;
  constexpr int kStreams = Words<kBits>::kStreams;
  auto* words = reinterpret_cast<std::uint32_t*>(region);
  const int stream = 2 * head_dim;
  for (int n = 0; n < Words<kBits>::PerTile(head_dim); ++n) {
    for (int j = 0; j < 4; ++j) {
      VU tile_words[format::kTiles][kStreams];
      for (int tile = 0; tile < format::kTiles; ++tile) {
        KWords<kBits>(work, n, j, tile * 16, tile_words[tile]);
      }
      for (int m = 0; m < kStreams; ++m) {
        HWY_ALIGN std::uint32_t lines[4 * kLanesF];  // [g][tile]
        hn::StoreInterleaved4(tile_words[0][m], tile_words[1][m], tile_words[2][m],
                              tile_words[3][m], du, lines);
        std::uint32_t* plane = words + m * stream + n * format::kPlaneWords;
        for (int g = 0; g < 8; ++g) {
          std::memcpy(plane + (g * 4 + j) * format::kSlots, lines + 4 * g, 16);
        }
      }
    }
  }
}

// Words n of V for one g and the lanes j = 0..3 of `token` (a tile's begin), in the low half of 64
// bits each: units hold the four channels of a token, lanes the tokens 2j + h.
template <int kBits>
HWY_INLINE void VWords(const Workspace& work, int n, int g, int token, VU* words) {
  const DU du;
  const DW dw;
  const VU byte = hn::Set(du, 0xffu);
  const auto unit = [&](int w, int r)
                        HWY_ATTR { return hn::Load(du, &work.units[8 * w + g][token + 8 * r]); };
  const auto join_halves = [&](VU codes) HWY_ATTR {  // h is the odd lane
    const auto wide = hn::BitCast(dw, codes);
    return hn::BitCast(du, hn::Or(wide, hn::ShiftRight<16>(wide)));
  };
  if constexpr (kBits == 3) {
    MakeTriple(
        [&](int pair, int r) HWY_ATTR {
          const VU codes = hn::ShiftRightSame(unit(2 * n + pair / 4, r), 8 * (pair % 4));
          return join_halves(hn::And(codes, byte));
        },
        words);
  } else {
    const auto fields = [&](int r) HWY_ATTR {  // all fields of byte r, in the low byte
      const auto two = [&](int w) HWY_ATTR {
        const VU codes = unit(w, r);
        return hn::Or(codes, hn::ShiftRight<8 - kBits % 8>(codes));
      };
      const auto four = [&](int w) HWY_ATTR {
        const VU codes = two(w);
        return hn::And(hn::Or(codes, hn::ShiftRight<16 - 2 * (kBits % 8)>(codes)), byte);
      };
      if constexpr (kBits == 8) {
        return hn::And(hn::ShiftRightSame(unit(n / 4, r), 8 * (n % 4)), byte);
      } else if constexpr (kBits == 4) {
        return hn::And(hn::ShiftRightSame(two(n / 2), 16 * (n % 2)), byte);
      } else if constexpr (kBits == 2) {
        return four(n);
      } else {
        const VU nibble = hn::Set(du, 0xfu);
        return hn::Or(hn::And(four(2 * n), nibble),
                      hn::ShiftLeft<4>(hn::And(four(2 * n + 1), nibble)));
      }
    };
    words[0] = join_halves(hn::Or(fields(0), hn::ShiftLeft<8>(fields(1))));
  }
}

template <int kBits>
void PackV(const Workspace& work, int head_dim, std::byte* region) {
  const DW dw;
  constexpr int kStreams = Words<kBits>::kStreams;
  auto* words = reinterpret_cast<std::uint32_t*>(region);
  const int per_tile = Words<kBits>::PerTile(head_dim);
  const int u = format::internal::Gcd4(per_tile), stream = 2 * head_dim;
  const auto low = hn::Set(dw, 0xffffffffu);
  for (int plane = 0; plane < per_tile; ++plane) {
    const int columns = per_tile / u;
    int token[format::kSlots], n[format::kSlots];
    for (int slot = 0; slot < format::kSlots; ++slot) {
      token[slot] = (plane / columns * (4 / u) + slot / u) * 16;
      n[slot] = plane % columns * u + slot % u;
    }
    for (int g = 0; g < 8; ++g) {
      VU slots[format::kSlots][kStreams];
      for (int slot = 0; slot < format::kSlots; ++slot) {
        VWords<kBits>(work, n[slot], g, token[slot], slots[slot]);
      }
      for (int m = 0; m < kStreams; ++m) {
        const auto pair = [&](int slot) HWY_ATTR {
          return hn::Or(hn::And(hn::BitCast(dw, slots[slot][m]), low),
                        hn::ShiftLeft<32>(hn::BitCast(dw, slots[slot + 1][m])));
        };
        std::uint32_t* line = words + m * stream + plane * format::kPlaneWords + g * 16;
        hn::StoreInterleaved2(pair(0), pair(2), dw, reinterpret_cast<std::uint64_t*>(line));
      }
    }
  }
}

// The last group of 32 channels where their number is odd (head_dim 96 at 1 and 3 bits).
inline void PackOddGroup(const Workspace& work, bool is_v, int bits, int head_dim,
                         std::byte* region) {
  const int streams = bits == 3 ? 3 : 1;
  for (int m = 0; m < streams; ++m) {
    const int half_plane = m * 2 * head_dim + head_dim / 64 * format::kPlaneWords;
    std::memset(region + std::size_t{4} * half_plane, 0, format::kPlaneBytes / 2);
  }
  for (int channel = head_dim / 64 * 64; channel < head_dim; ++channel) {
    for (int token = 0; token < kBlockTokens; ++token) {
      const std::uint32_t code = work.units[channel / 4][token] >> (8 * (channel % 4)) & 0xffu;
      PutCode(region,
              is_v ? format::VPlace(bits, head_dim, token, channel)
                   : format::KPlace(bits, head_dim, token, channel),
              bits, code);
    }
  }
}

template <int kBits>
void Pack(const Workspace& work, bool is_v, int head_dim, std::byte* region) {
  if (is_v) {
    PackV<kBits>(work, head_dim, region);
  } else {
    PackK<kBits>(work, head_dim, region);
  }
  if ((kBits == 1 || kBits == 3) && head_dim % 64 != 0) {
    PackOddGroup(work, is_v, kBits, head_dim, region);
  }
}

inline void PackBits(const Workspace& work, bool is_v, int bits, int head_dim, std::byte* region) {
  switch (bits) {
    case 1:
      return Pack<1>(work, is_v, head_dim, region);
    case 2:
      return Pack<2>(work, is_v, head_dim, region);
    case 3:
      return Pack<3>(work, is_v, head_dim, region);
    case 4:
      return Pack<4>(work, is_v, head_dim, region);
    default:
      return Pack<8>(work, is_v, head_dim, region);
  }
}

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
