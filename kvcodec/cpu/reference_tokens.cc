#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/cpu/reference_kinds.h"
#include "kvcodec/e4m3.h"
#include "kvcodec/format.h"
#include "kvcodec/lut.h"

// Kinds with one scale per token, head and side: a value is the scale times what its code says,
// and of shifted keys the zero of their channel more. A kind is a struct that knows its scale
// (ScaleOf, ScaleAt: the byte it is stored at), its codes (Put of value / scale, Get) and its zeros
// (HasZeros, ZeroAt); the rest is written once.
namespace kvferry::codec::cpu {
namespace {

constexpr int kMaxHeadDim = 256;

float LargestOf(std::span<const float> row) {
  float largest = 0;
  for (const float value : row) largest = std::max(largest, std::fabs(value));
  return largest;
}

// Kinds with a byte per code, in token order.
struct ByteCodes {
  int head_dim;
  format::TokenScaleLayout at;

  void Clear(std::byte*) const {}
  static bool HasZeros(bool) { return false; }
  static int ZeroAt(int) { return 0; }
  int ScaleAt(bool is_v, int token) const { return (is_v ? at.v_scale : at.k_scale) + 2 * token; }
  int CodeAt(bool is_v, int token, int channel) const {
    return (is_v ? at.v_codes : at.k_codes) + token * head_dim + channel;
  }
};

struct Int8 : ByteCodes {
  explicit Int8(const BlockSpec& spec)
      : ByteCodes{spec.head_dim, format::Int8Block(spec.head_dim)} {}

  static TokenScale ScaleOf(std::span<const float> row) {
    return MakeTokenScale(LargestOf(row) / 127.0f);
  }
  void Put(std::byte* block, bool is_v, int token, int channel, float scaled) const {
    block[CodeAt(is_v, token, channel)] = static_cast<std::byte>(MakeInt8Code(scaled));
  }
  float Get(const std::byte* block, bool is_v, int token, int channel) const {
    return static_cast<float>(static_cast<std::int8_t>(block[CodeAt(is_v, token, channel)]));
  }
};

struct Fp8 : ByteCodes {
  explicit Fp8(const BlockSpec& spec) : ByteCodes{spec.head_dim, format::Fp8Block(spec.head_dim)} {}

  static TokenScale ScaleOf(std::span<const float> row) {
    return MakeTokenScale(LargestOf(row) / kE4m3Max);
  }
  void Put(std::byte* block, bool is_v, int token, int channel, float scaled) const {
    block[CodeAt(is_v, token, channel)] = static_cast<std::byte>(E4m3FromFloat(scaled));
  }
  float Get(const std::byte* block, bool is_v, int token, int channel) const {
    return FloatFromE4m3(static_cast<std::uint8_t>(block[CodeAt(is_v, token, channel)]));
  }
};

// Codes of a table's levels, placed as those of KVB.
struct LutCodes {
  explicit LutCodes(const BlockSpec& spec)
      : head_dim(spec.head_dim),
        lut(*FindLut(spec.table)),
        at(format::LutBlock(spec.head_dim, lut.bits, lut.shifted_keys)) {}

  TokenScale ScaleOf(std::span<const float> row) const {
    if (lut.scale == LutScale::kLargest) return MakeTokenScale(LargestOf(row));
    float sums[8] = {};
    for (int channel = 0; channel < head_dim; ++channel) {
      sums[channel % 8] += row[channel] * row[channel];
    }
    return MakeTokenScale(RmsOf(sums, head_dim));
  }
  void Clear(std::byte* block) const { std::memset(block, 0, at.bytes); }
  bool HasZeros(bool is_v) const { return lut.shifted_keys && !is_v; }
  int ZeroAt(int channel) const { return at.k_zero + 2 * channel; }
  void Put(std::byte* block, bool is_v, int token, int channel, float scaled) const {
    PutCode(block + (is_v ? at.v_codes : at.k_codes), PlaceOf(is_v, token, channel), lut.bits,
            MakeLutCode(scaled, lut));
  }
  float Get(const std::byte* block, bool is_v, int token, int channel) const {
    return lut.levels[GetCode(block + (is_v ? at.v_codes : at.k_codes),
                              PlaceOf(is_v, token, channel), lut.bits)];
  }
  int ScaleAt(bool is_v, int token) const {
    return is_v ? at.v_scale + 2 * format::VScalePosition(token)
                : at.k_scale + 2 * format::KScalePosition(token);
  }

  format::CodePlace PlaceOf(bool is_v, int token, int channel) const {
    return is_v ? format::VPlace(lut.bits, head_dim, token, channel)
                : format::KPlace(lut.bits, head_dim, token, channel);
  }
  int head_dim;
  const Lut& lut;
  format::LutLayout at;
};

KeyZero ZeroOf(const Side& side, int channel) {
  float low = side.at(0, channel), high = low;
  for (int token = 1; token < kBlockTokens; ++token) {
    low = std::min(low, side.at(token, channel));
    high = std::max(high, side.at(token, channel));
  }
  return MakeKeyZero(low, high);
}

// What codes are made from: the values of a side, less the zeros of their channels.
struct ShiftedSide {
  template <class Kind>
  ShiftedSide(const Kind& kind, const Side& from, int channels, bool is_v)
      : side(from), head_dim(channels) {
    for (int channel = 0; kind.HasZeros(is_v) && channel < head_dim; ++channel) {
      const KeyZero key = ZeroOf(side, channel);
      if (!key.fits && bad_channel < 0) bad_channel = channel;
      zeros[channel] = key.zero;
    }
  }
  std::span<const float> Row(int token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      row[channel] = side.at(token, channel) - FloatFromHalf(zeros[channel]);
    }
    return {row, static_cast<std::size_t>(head_dim)};
  }

  const Side& side;
  int head_dim;
  std::uint16_t zeros[kMaxHeadDim] = {};
  int bad_channel = -1;  // the first whose zero does not fit
  float row[kMaxHeadDim];
};

template <class Kind>
bool QuantizeSide(const Kind& kind, const Side& side, int head_dim, bool is_v, std::byte* block) {
  ShiftedSide shifted(kind, side, head_dim, is_v);
  if (shifted.bad_channel >= 0) return false;
  for (int channel = 0; kind.HasZeros(is_v) && channel < head_dim; ++channel) {
    StoreU16(block + kind.ZeroAt(channel), 0, shifted.zeros[channel]);
  }
  for (int token = 0; token < kBlockTokens; ++token) {
    const std::span<const float> row = shifted.Row(token);
    const TokenScale scale = kind.ScaleOf(row);
    if (!scale.fits) return false;
    StoreU16(block + kind.ScaleAt(is_v, token), 0, scale.scale);
    for (int channel = 0; channel < head_dim; ++channel) {
      kind.Put(block, is_v, token, channel, row[channel] * scale.inverse);
    }
  }
  return true;
}

template <class Kind>
bool Quantize(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const Kind kind(spec);
  kind.Clear(block);
  return QuantizeSide(kind, KSide(rows), spec.head_dim, false, block) &&
         QuantizeSide(kind, VSide(rows), spec.head_dim, true, block);
}

template <class Kind>
std::optional<BlockFault> FindScaleFault(const Side& side, const BlockSpec& spec, bool is_v) {
  const Kind kind(spec);
  ShiftedSide shifted(kind, side, spec.head_dim, is_v);
  if (shifted.bad_channel >= 0) return BlockFault{is_v, false, -1, shifted.bad_channel};
  for (int token = 0; token < kBlockTokens; ++token) {
    if (!kind.ScaleOf(shifted.Row(token)).fits) return BlockFault{is_v, false, token, -1};
  }
  return std::nullopt;
}

template <class Kind>
void Attend(const std::byte* block, const BlockSpec& spec, const BlockPlace&,
            const QueryGroup& group, const SoftmaxState& state) {
  const Kind kind(spec);
  const auto scale = [&](bool is_v, int token) {
    return FloatFromHalf(LoadU16(block + kind.ScaleAt(is_v, token), 0));
  };
  for (int head = 0; head < group.heads; ++head) {
    const float* q = group.q + static_cast<std::ptrdiff_t>(head) * spec.head_dim;
    float scores[kBlockTokens], constant = 0;
    for (int channel = 0; kind.HasZeros(false) && channel < spec.head_dim; ++channel) {
      constant += q[channel] * FloatFromHalf(LoadU16(block + kind.ZeroAt(channel), 0));
    }
    for (int token = 0; token < kBlockTokens; ++token) {
      float sum = 0;
      for (int channel = 0; channel < spec.head_dim; ++channel) {
        sum += q[channel] * kind.Get(block, false, token, channel);
      }
      scores[token] = sum * scale(false, token) + constant;
    }
    AddTokens(scores, kBlockTokens, head, group, state, [&](int token, int channel) {
      return scale(true, token) * kind.Get(block, true, token, channel);
    });
  }
}

template <class Kind>
void Dequantize(const std::byte* block, const BlockSpec& spec, const BlockPlace&, float* k,
                float* v) {
  const Kind kind(spec);
  for (const bool is_v : {false, true}) {
    float* out = is_v ? v : k;
    for (int token = 0; token < kBlockTokens; ++token) {
      const float scale = FloatFromHalf(LoadU16(block + kind.ScaleAt(is_v, token), 0));
      for (int channel = 0; channel < spec.head_dim; ++channel) {
        const float value = scale * kind.Get(block, is_v, token, channel);
        *out++ = !kind.HasZeros(is_v)
                     ? value
                     : value + FloatFromHalf(LoadU16(block + kind.ZeroAt(channel), 0));
      }
    }
  }
}

template <class Kind>
constexpr ReferenceKind kTokenReference = {Quantize<Kind>, FindScaleFault<Kind>, Attend<Kind>,
                                           Dequantize<Kind>};

}  // namespace

const ReferenceKind& Int8Reference() { return kTokenReference<Int8>; }
const ReferenceKind& Fp8Reference() { return kTokenReference<Fp8>; }
const ReferenceKind& LutReference() { return kTokenReference<LutCodes>; }

}  // namespace kvferry::codec::cpu
