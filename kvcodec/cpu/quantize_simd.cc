#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/quantize_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

bool QuantizeBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return ReferenceOps().quantize(rows, spec, block);
}

#else

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

// K: smallest and largest of each channel over GK tokens. false: a value is not finite.
template <class Source>
bool RangesOfK(const Source& source, std::int64_t stride, const BlockSpec& spec, Workspace& work) {
  const DF df;
  const VF zero = hn::Zero(df);
  VF poison = zero;  // becomes NaN with the first NaN or infinite value
  for (int row = 0; row < kBlockTokens / spec.k_group_tokens; ++row) {
    for (int channel = 0; channel < spec.head_dim; channel += kLanesF) {
      const std::int64_t first = row * spec.k_group_tokens * stride + channel;
      VF low = source.Load(df, first);
      VF high = low;
      poison = hn::MulAdd(low, zero, poison);
      for (int token = 1; token < spec.k_group_tokens; ++token) {
        const VF value = source.Load(df, first + token * stride);
        low = hn::Min(low, value);
        high = hn::Max(high, value);
        poison = hn::MulAdd(value, zero, poison);
      }
      hn::Store(low, df, work.low + row * spec.head_dim + channel);
      hn::Store(high, df, work.high + row * spec.head_dim + channel);
    }
  }
  return hn::AllTrue(df, hn::Eq(poison, zero));
}

// V: smallest and largest of each token over GV channels, at the position of its scale.
template <class Source>
bool RangesOfV(const Source& source, std::int64_t stride, const BlockSpec& spec, Workspace& work) {
  const DF df;
  const VF zero = hn::Zero(df);
  VF poison = zero;
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int begin = 0; begin < spec.head_dim; begin += spec.v_group_channels) {
      const std::int64_t first = token * stride + begin;
      VF low = source.Load(df, first);
      VF high = low;
      poison = hn::MulAdd(low, zero, poison);
      for (int channel = kLanesF; channel < spec.v_group_channels; channel += kLanesF) {
        const VF value = source.Load(df, first + channel);
        low = hn::Min(low, value);
        high = hn::Max(high, value);
        poison = hn::MulAdd(value, zero, poison);
      }
      const int index = format::VScaleIndex(spec.v_group_channels, token, begin);
      work.low[index] = hn::GetLane(hn::MinOfLanes(df, low));
      work.high[index] = hn::GetLane(hn::MaxOfLanes(df, high));
    }
  }
  return hn::AllTrue(df, hn::Eq(poison, zero));
}

// MakeGroupScale of group_scale.h, eight groups at a time.
bool MakeScales(int groups, float levels, Workspace& work, std::byte* scale_out,
                std::byte* min_out) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const hn::Rebind<std::uint16_t, DF> du16;
  const hn::RebindToSigned<decltype(du16)> di16;
  const auto exponent = hn::Set(du16, 0x7c00);
  auto overflow = hn::Zero(du16);
  for (int i = 0; i < groups; i += kLanesF) {
    auto min = hn::BitCast(du16, hn::DemoteTo(df16, hn::Load(df, work.low + i)));
    min = hn::IfThenZeroElse(hn::Eq(min, hn::Set(du16, 0x8000)), min);
    const VF min_value = hn::PromoteTo(df, hn::BitCast(df16, min));
    const VF range = hn::Sub(hn::Load(df, work.high + i), min_value);
    auto scale = hn::BitCast(du16, hn::DemoteTo(df16, hn::Div(range, hn::Set(df, levels))));
    const auto sign = hn::BitCast(du16, hn::BroadcastSignBit(hn::BitCast(di16, scale)));
    scale = hn::AndNot(sign, scale);
    const VF scale_value = hn::PromoteTo(df, hn::BitCast(df16, scale));
    const VF inverse = hn::IfThenZeroElse(hn::Eq(scale_value, hn::Zero(df)),
                                          hn::Div(hn::Set(df, 1.0f), scale_value));
    for (const auto bits : {min, scale}) {
      const auto full = hn::Eq(hn::And(bits, exponent), exponent);
      overflow = hn::Or(overflow, hn::VecFromMask(du16, full));
    }
    hn::StoreU(min, du16, reinterpret_cast<std::uint16_t*>(min_out) + i);
    hn::StoreU(scale, du16, reinterpret_cast<std::uint16_t*>(scale_out) + i);
    hn::Store(min_value, df, work.min + i);
    hn::Store(inverse, df, work.inverse + i);
  }
  return hn::AllTrue(du16, hn::Eq(overflow, hn::Zero(du16)));
}

// Codes of two tokens, eight (or four) channels: rounds, clamps, and puts four channels to a unit.
HWY_INLINE void StoreCodes(
    VF first, VF second,
    hn::VFromD<hn::Rebind<std::uint8_t, hn::Repartition<std::int16_t, DF> > > top,
    std::uint32_t* units) {
  const hn::Repartition<std::int16_t, DF> d16;
  const hn::Rebind<std::uint8_t, decltype(d16)> d8;
  // Per 16 bytes: four channels of the first token, then the same of the second.
  const auto words = hn::ReorderDemote2To(d16, hn::NearestInt(first), hn::NearestInt(second));
  const auto codes = hn::Min(hn::DemoteTo(d8, words), top);
  HWY_ALIGN std::uint64_t pairs[kLanesF / 4];
  hn::Store(hn::BitCast(hn::Repartition<std::uint64_t, decltype(d8)>(), codes),
            hn::Repartition<std::uint64_t, decltype(d8)>(), pairs);
  for (int unit = 0; unit < kLanesF / 4; ++unit) {
    std::memcpy(units + unit * kBlockTokens, &pairs[unit], 8);
  }
}

template <class Source>
void CodesOfK(const Source& source, std::int64_t stride, const BlockSpec& spec, Workspace& work) {
  const DF df;
  const hn::Rebind<std::uint8_t, hn::Repartition<std::int16_t, DF> > d8;
  const auto top = hn::Set(d8, static_cast<std::uint8_t>((1 << spec.k_bits) - 1));
  for (int channel = 0; channel < spec.head_dim; channel += kLanesF) {
    for (int row = 0; row < kBlockTokens / spec.k_group_tokens; ++row) {
      const VF min = hn::Load(df, work.min + row * spec.head_dim + channel);
      const VF inverse = hn::Load(df, work.inverse + row * spec.head_dim + channel);
      const int begin = row * spec.k_group_tokens;
      for (int token = begin; token < begin + spec.k_group_tokens; token += 2) {
        const std::int64_t at = token * stride + channel;
        const VF first = hn::Mul(hn::Sub(source.Load(df, at), min), inverse);
        const VF second = hn::Mul(hn::Sub(source.Load(df, at + stride), min), inverse);
        StoreCodes(first, second, top, &work.units[channel / 4][token]);
      }
    }
  }
}

template <class Source>
void CodesOfV(const Source& source, std::int64_t stride, const BlockSpec& spec, Workspace& work) {
  const DF df;
  const hn::Rebind<std::uint8_t, hn::Repartition<std::int16_t, DF> > d8;
  const auto top = hn::Set(d8, static_cast<std::uint8_t>((1 << spec.v_bits) - 1));
  for (int token = 0; token < kBlockTokens; token += 2) {
    for (int begin = 0; begin < spec.head_dim; begin += spec.v_group_channels) {
      const int index0 = format::VScaleIndex(spec.v_group_channels, token, begin);
      const int index1 = format::VScaleIndex(spec.v_group_channels, token + 1, begin);
      const VF min0 = hn::Set(df, work.min[index0]), min1 = hn::Set(df, work.min[index1]);
      const VF inverse0 = hn::Set(df, work.inverse[index0]);
      const VF inverse1 = hn::Set(df, work.inverse[index1]);
      for (int channel = begin; channel < begin + spec.v_group_channels; channel += kLanesF) {
        const std::int64_t at = token * stride + channel;
        const VF first = hn::Mul(hn::Sub(source.Load(df, at), min0), inverse0);
        const VF second = hn::Mul(hn::Sub(source.Load(df, at + stride), min1), inverse1);
        StoreCodes(first, second, top, &work.units[channel / 4][token]);
      }
    }
  }
}

// The words of format.h. `field(pair, r)` gives the codes of one channel pair (K) or channel (V):
// both halves h = 0, 1 in the low 16 bits of each half of a 32-bit word.
template <int kBits, class Field>
HWY_INLINE void MakeWords(int n, Field field, VU* words) {
  const DU du;
  if constexpr (kBits == 3) {
    const VU low = hn::Set(du, 0x00010001u);
    const VU last = field(8 * n + 7, 1);
    for (int m = 0; m < 3; ++m) {
      const VU middle = m == 0   ? field(8 * n + 6, 0)
                        : m == 1 ? field(8 * n + 6, 1)
                                 : field(8 * n + 7, 0);
      const VU bit = hn::And(m == 0   ? last
                             : m == 1 ? hn::ShiftRight<1>(last)
                                      : hn::ShiftRight<2>(last),
                             low);
      VU word = hn::Or(field(8 * n + 2 * m, 0), hn::ShiftLeft<3>(field(8 * n + 2 * m + 1, 0)));
      word = hn::Or(word, hn::ShiftLeft<6>(middle));
      word = hn::Or(word, hn::ShiftLeft<9>(field(8 * n + 2 * m, 1)));
      word = hn::Or(word, hn::ShiftLeft<12>(field(8 * n + 2 * m + 1, 1)));
      words[m] = hn::Or(word, hn::ShiftLeft<15>(bit));
    }
  } else {
    constexpr int kFields = 8 / kBits;
    VU word = hn::Or(field(n * kFields, 0), hn::ShiftLeft<8>(field(n * kFields, 1)));
    for (int k = 1; k < kFields; ++k) {
      const VU both =
          hn::Or(field(n * kFields + k, 0), hn::ShiftLeft<8>(field(n * kFields + k, 1)));
      word = hn::Or(word, hn::ShiftLeftSame(both, kBits * k));
    }
    words[0] = word;
  }
}

// How the words of `bits` are grouped: bits 1 and 3 share one order, 3 bits in three streams.
template <int kBits>
struct Words {
  static constexpr int kStreams = kBits == 3 ? 3 : 1;
  static constexpr int PerTile(int head_dim) {
    return kBits == 1 || kBits == 3 ? head_dim / 64 : head_dim * kBits / 64;
  }
};

// One lane's half2 of channels: [f0h0 f0h1 f1h0 f1h1] bytes of a unit -> h0 | h1 << 16 of one f.
HWY_INLINE VU KField(const Workspace& work, int pair, int j, int token) {
  const DU du;
  const int w = pair / 4, f = pair % 4;
  const VU unit = hn::Load(du, &work.units[8 * w + 2 * j + f / 2][token]);
  const VU codes = f % 2 == 0 ? unit : hn::ShiftRight<16>(unit);
  return hn::Or(hn::And(codes, hn::Set(du, 0xffu)),
                hn::And(hn::ShiftLeft<8>(codes), hn::Set(du, 0xff0000u)));
}

template <int kBits>
void PackK(const Workspace& work, int head_dim, std::byte* region) {
  const DU du;
  constexpr int kStreams = Words<kBits>::kStreams;
  auto* words = reinterpret_cast<std::uint32_t*>(region);
  const int stream = 2 * head_dim;
  for (int n = 0; n < Words<kBits>::PerTile(head_dim); ++n) {
    for (int j = 0; j < 4; ++j) {
      for (int g = 0; g < 8; g += kLanesF) {
        VU tile_words[format::kTiles][kStreams];
        for (int tile = 0; tile < format::kTiles; ++tile) {
          MakeWords<kBits>(
              n,
              [&](int pair, int r)
                  HWY_ATTR { return KField(work, pair, j, tile * 16 + 8 * r + g); },
              tile_words[tile]);
        }
        for (int m = 0; m < kStreams; ++m) {
          HWY_ALIGN std::uint32_t lines[4 * kLanesF];  // [g][tile]
          hn::StoreInterleaved4(tile_words[0][m], tile_words[1][m], tile_words[2][m],
                                tile_words[3][m], du, lines);
          std::uint32_t* plane = words + m * stream + n * format::kPlaneWords;
          for (int i = 0; i < kLanesF; ++i) {
            std::memcpy(plane + ((g + i) * 4 + j) * format::kSlots, lines + 4 * i, 16);
          }
        }
      }
    }
  }
}

// Tokens 2j and 2j + 1 of one channel, in the low word of a 64-bit lane j.
HWY_INLINE VU VField(const Workspace& work, int pair, int g, int token) {
  const DU du;
  const DW dw;
  const VU unit = hn::Load(du, &work.units[8 * (pair / 4) + g][token]);
  const VU codes = hn::And(hn::ShiftRightSame(unit, 8 * (pair % 4)), hn::Set(du, 0xffu));
  const auto wide = hn::BitCast(dw, codes);
  return hn::BitCast(du, hn::Or(wide, hn::ShiftRight<16>(wide)));
}

template <int kBits>
void PackV(const Workspace& work, int head_dim, std::byte* region) {
  const DU du;
  const DW dw;
  constexpr int kStreams = Words<kBits>::kStreams;
  constexpr int kStep = kLanesF / 2;  // lanes j that one vector of tokens covers
  auto* words = reinterpret_cast<std::uint32_t*>(region);
  const int per_tile = Words<kBits>::PerTile(head_dim);
  const int u = format::internal::Gcd4(per_tile), stream = 2 * head_dim;
  const auto low = hn::Set(dw, 0xffffffffu);
  for (int plane = 0; plane < per_tile; ++plane) {
    for (int g = 0; g < 8; ++g) {
      for (int j = 0; j < 4; j += kStep) {
        VU slots[format::kSlots][kStreams];
        for (int slot = 0; slot < format::kSlots; ++slot) {
          const int tile = plane / (per_tile / u) * (4 / u) + slot / u;
          const int n = plane % (per_tile / u) * u + slot % u;
          MakeWords<kBits>(
              n,
              [&](int pair, int r)
                  HWY_ATTR { return VField(work, pair, g, tile * 16 + 8 * r + 2 * j); },
              slots[slot]);
        }
        for (int m = 0; m < kStreams; ++m) {
          const auto pair = [&](int slot) HWY_ATTR {
            return hn::Or(hn::And(hn::BitCast(dw, slots[slot][m]), low),
                          hn::ShiftLeft<32>(hn::BitCast(dw, slots[slot + 1][m])));
          };
          HWY_ALIGN std::uint64_t lines[2 * hn::MaxLanes(DW())];  // [j][slot pair]
          hn::StoreInterleaved2(pair(0), pair(2), dw, lines);
          std::memcpy(
              words + m * stream + plane * format::kPlaneWords + (g * 4 + j) * format::kSlots,
              lines, sizeof lines);
        }
      }
    }
  }
  (void)du;
}

// The last group of 32 channels where their number is odd (head_dim 96 at 1 and 3 bits).
void PackOddGroup(const Workspace& work, bool is_v, int bits, int head_dim, std::byte* region) {
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

void PackBits(const Workspace& work, bool is_v, int bits, int head_dim, std::byte* region) {
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

template <Raw16 kType>
bool QuantizeScalar(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const format::ScalarLayout at = format::ScalarBlock(spec.head_dim, spec.k_bits, spec.v_bits,
                                                      spec.k_group_tokens, spec.v_group_channels);
  const Raw16Source<kType> k = {rows.k}, v = {rows.v};
  Workspace work;
  const int k_groups = kBlockTokens / spec.k_group_tokens * spec.head_dim;
  if (!RangesOfK(k, rows.token_stride, spec, work) ||
      !MakeScales(k_groups, static_cast<float>((1 << spec.k_bits) - 1), work, block + at.k_scale,
                  block + at.k_min)) {
    return false;
  }
  CodesOfK(k, rows.token_stride, spec, work);
  PackBits(work, false, spec.k_bits, spec.head_dim, block + at.k_codes);

  const int v_groups = kBlockTokens * (spec.head_dim / spec.v_group_channels);
  if (!RangesOfV(v, rows.token_stride, spec, work) ||
      !MakeScales(v_groups, static_cast<float>((1 << spec.v_bits) - 1), work, block + at.v_scale,
                  block + at.v_min)) {
    return false;
  }
  CodesOfV(v, rows.token_stride, spec, work);
  PackBits(work, true, spec.v_bits, spec.head_dim, block + at.v_codes);
  return true;
}

template <class Source>
bool QuantizeInt8Side(const Source& source, std::int64_t stride, int head_dim, std::byte* codes,
                      std::byte* scales) {
  const DF df;
  const hn::Rebind<std::int8_t, DF> d8;
  const VF zero = hn::Zero(df);
  for (int token = 0; token < kBlockTokens; ++token) {
    VF largest = zero, poison = zero;
    for (int channel = 0; channel < head_dim; channel += kLanesF) {
      const VF value = source.Load(df, token * stride + channel);
      largest = hn::Max(largest, hn::Abs(value));
      poison = hn::MulAdd(value, zero, poison);
    }
    const Int8Scale scale = MakeInt8Scale(hn::GetLane(hn::MaxOfLanes(df, largest)));
    if (!scale.fits || !hn::AllTrue(df, hn::Eq(poison, zero))) return false;
    StoreU16(scales, token, scale.scale);
    const VF inverse = hn::Set(df, scale.inverse);
    const VF top = hn::Set(df, 127.0f), bottom = hn::Set(df, -127.0f);
    for (int channel = 0; channel < head_dim; channel += kLanesF) {
      const VF code = hn::Mul(source.Load(df, token * stride + channel), inverse);
      const auto rounded = hn::NearestInt(hn::Min(hn::Max(code, bottom), top));
      hn::StoreU(hn::DemoteTo(d8, rounded), d8,
                 reinterpret_cast<std::int8_t*>(codes) + token * head_dim + channel);
    }
  }
  return true;
}

template <Raw16 kType>
bool QuantizeInt8(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const format::Int8Layout at = format::Int8Block(spec.head_dim);
  return QuantizeInt8Side(Raw16Source<kType>{rows.k}, rows.token_stride, spec.head_dim,
                          block + at.k_codes, block + at.k_scale) &&
         QuantizeInt8Side(Raw16Source<kType>{rows.v}, rows.token_stride, spec.head_dim,
                          block + at.v_codes, block + at.v_scale);
}

bool CopyRaw16Side(const std::uint16_t* values, std::int64_t stride, Raw16 type, int head_dim,
                   std::byte* out) {
  const hn::CappedTag<std::uint16_t, 16> d16;
  const auto exponent = hn::Set(d16, type == Raw16::kFp16 ? 0x7c00 : 0x7f80);
  auto full = hn::Zero(d16);
  for (int token = 0; token < kBlockTokens; ++token) {
    for (std::size_t channel = 0; channel < static_cast<std::size_t>(head_dim);
         channel += hn::Lanes(d16)) {
      const auto bits = hn::LoadU(d16, values + token * stride + channel);
      full = hn::Or(full, hn::VecFromMask(d16, hn::Eq(hn::And(bits, exponent), exponent)));
      hn::StoreU(bits, d16,
                 reinterpret_cast<std::uint16_t*>(out) +
                     static_cast<std::ptrdiff_t>(token) * head_dim + channel);
    }
  }
  return hn::AllTrue(d16, hn::Eq(full, hn::Zero(d16)));
}

bool QuantizeBlock(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const bool fp16 = rows.type == Raw16::kFp16;
  switch (spec.kind) {
    case BlockKind::kRaw16: {
      const format::Raw16Layout at = format::Raw16Block(spec.head_dim);
      return CopyRaw16Side(rows.k, rows.token_stride, rows.type, spec.head_dim, block + at.k) &&
             CopyRaw16Side(rows.v, rows.token_stride, rows.type, spec.head_dim, block + at.v);
    }
    case BlockKind::kInt8:
      return fp16 ? QuantizeInt8<Raw16::kFp16>(rows, spec, block)
                  : QuantizeInt8<Raw16::kBf16>(rows, spec, block);
    case BlockKind::kScalar:
      break;
  }
  return fp16 ? QuantizeScalar<Raw16::kFp16>(rows, spec, block)
              : QuantizeScalar<Raw16::kBf16>(rows, spec, block);
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(QuantizeBlock);

bool QuantizeSimd(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return HWY_DYNAMIC_DISPATCH(QuantizeBlock)(rows, spec, block);
}

}  // namespace kvferry::codec::cpu
#endif
