#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/cpu/reference_kinds.h"
#include "kvcodec/format.h"

// KVB blocks (kScalar): one scale and min per group, keys per channel and values per token.
namespace kvferry::codec::cpu {
namespace {

constexpr int kMaxHeadDim = 256;

format::ScalarLayout LayoutOf(const BlockSpec& spec) {
  return format::ScalarBlock(spec.head_dim, spec.k_bits, spec.v_bits, spec.k_group_tokens,
                             spec.v_group_channels);
}

struct Range {
  int token_begin, token_end, channel_begin, channel_end;
};

GroupScale ScaleOf(const Side& side, const Range& range, float levels) {
  float low = INFINITY, high = -INFINITY;
  for (int token = range.token_begin; token < range.token_end; ++token) {
    for (int channel = range.channel_begin; channel < range.channel_end; ++channel) {
      low = std::min(low, side.at(token, channel));
      high = std::max(high, side.at(token, channel));
    }
  }
  return MakeGroupScale(low, high, levels);
}

// Calls fn(range) for every group of a side: per channel over GK tokens, or per token over GV
// channels.
template <class Fn>
void ForEachGroup(const BlockSpec& spec, bool is_v, Fn fn) {
  const int tokens = is_v ? 1 : spec.k_group_tokens;
  const int channels = is_v ? spec.v_group_channels : 1;
  for (int token = 0; token < kBlockTokens; token += tokens) {
    for (int channel = 0; channel < spec.head_dim; channel += channels) {
      fn(Range{token, token + tokens, channel, channel + channels});
    }
  }
}

bool QuantizeScalarSide(const Side& side, const BlockSpec& spec, bool is_v, std::byte* block) {
  const format::ScalarLayout at = LayoutOf(spec);
  const int bits = is_v ? spec.v_bits : spec.k_bits;
  const auto levels = static_cast<float>((1 << bits) - 1);
  std::byte* codes = block + (is_v ? at.v_codes : at.k_codes);
  std::memset(codes, 0, format::CodeBytes(bits, spec.head_dim));
  bool fits = true;
  ForEachGroup(spec, is_v, [&](const Range& range) {
    const GroupScale group = ScaleOf(side, range, levels);
    fits &= group.fits;
    if (!group.fits) return;
    const int index =
        is_v ? format::VScaleIndex(spec.v_group_channels, range.token_begin, range.channel_begin)
             : format::KScaleIndex(spec.head_dim, spec.k_group_tokens, range.token_begin,
                                   range.channel_begin);
    StoreU16(block + (is_v ? at.v_scale : at.k_scale), index, group.scale);
    StoreU16(block + (is_v ? at.v_min : at.k_min), index, group.min);
    for (int token = range.token_begin; token < range.token_end; ++token) {
      for (int channel = range.channel_begin; channel < range.channel_end; ++channel) {
        const format::CodePlace place = is_v ? format::VPlace(bits, spec.head_dim, token, channel)
                                             : format::KPlace(bits, spec.head_dim, token, channel);
        PutCode(codes, place, bits, MakeCode(side.at(token, channel), group, levels));
      }
    }
  });
  return fits;
}

bool Quantize(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  return QuantizeScalarSide(KSide(rows), spec, false, block) &&
         QuantizeScalarSide(VSide(rows), spec, true, block);
}

std::optional<BlockFault> FindScaleFault(const Side& side, const BlockSpec& spec, bool is_v) {
  std::optional<BlockFault> fault;
  const auto levels = static_cast<float>((1 << (is_v ? spec.v_bits : spec.k_bits)) - 1);
  ForEachGroup(spec, is_v, [&](const Range& range) {
    if (fault || ScaleOf(side, range, levels).fits) return;
    fault = is_v ? BlockFault{true, false, range.token_begin, -1}
                 : BlockFault{false, false, -1, range.channel_begin};
  });
  return fault;
}

void Attend(const std::byte* block, const BlockSpec& spec, const BlockPlace&,
            const QueryGroup& group, const SoftmaxState& state) {
  const format::ScalarLayout at = LayoutOf(spec);
  const int d = spec.head_dim;
  const auto k_code = [&](int token, int channel) {
    return static_cast<float>(
        GetCode(block + at.k_codes, format::KPlace(spec.k_bits, d, token, channel), spec.k_bits));
  };
  const auto v_value = [&](int token, int channel) {
    const int index = format::VScaleIndex(spec.v_group_channels, token, channel);
    const auto code = static_cast<float>(
        GetCode(block + at.v_codes, format::VPlace(spec.v_bits, d, token, channel), spec.v_bits));
    return FloatFromHalf(LoadU16(block + at.v_scale, index)) * code +
           FloatFromHalf(LoadU16(block + at.v_min, index));
  };
  for (int head = 0; head < group.heads; ++head) {
    const float* q = group.q + static_cast<std::ptrdiff_t>(head) * d;
    float scores[kBlockTokens];
    for (int row = 0; row < kBlockTokens; row += spec.k_group_tokens) {
      // Scales go into q and mins into one constant, once per group of tokens.
      float scaled_q[kMaxHeadDim];
      float constant = 0;
      for (int channel = 0; channel < d; ++channel) {
        const int index = format::KScaleIndex(d, spec.k_group_tokens, row, channel);
        scaled_q[channel] = q[channel] * FloatFromHalf(LoadU16(block + at.k_scale, index));
        constant += q[channel] * FloatFromHalf(LoadU16(block + at.k_min, index));
      }
      for (int token = row; token < row + spec.k_group_tokens; ++token) {
        float sum = 0;
        for (int channel = 0; channel < d; ++channel) {
          sum += scaled_q[channel] * k_code(token, channel);
        }
        scores[token] = sum + constant;
      }
    }
    AddTokens(scores, kBlockTokens, head, group, state, v_value);
  }
}

void Dequantize(const std::byte* block, const BlockSpec& spec, const BlockPlace&, float* k,
                float* v) {
  const format::ScalarLayout at = LayoutOf(spec);
  const int d = spec.head_dim;
  const auto value = [&](int codes, int scale, int min, int index, const format::CodePlace& place,
                         int bits) {
    return FloatFromHalf(LoadU16(block + scale, index)) *
               static_cast<float>(GetCode(block + codes, place, bits)) +
           FloatFromHalf(LoadU16(block + min, index));
  };
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int channel = 0; channel < d; ++channel) {
      const int i = token * d + channel;
      k[i] = value(at.k_codes, at.k_scale, at.k_min,
                   format::KScaleIndex(d, spec.k_group_tokens, token, channel),
                   format::KPlace(spec.k_bits, d, token, channel), spec.k_bits);
      v[i] = value(at.v_codes, at.v_scale, at.v_min,
                   format::VScaleIndex(spec.v_group_channels, token, channel),
                   format::VPlace(spec.v_bits, d, token, channel), spec.v_bits);
    }
  }
}

}  // namespace

const ReferenceKind& ScalarReference() {
  static constexpr ReferenceKind kKind = {Quantize, FindScaleFault, Attend, Dequantize};
  return kKind;
}

}  // namespace kvferry::codec::cpu
