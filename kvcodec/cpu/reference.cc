#include "kvcodec/cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/group_scale.h"
#include "kvcodec/format.h"
#include "kvcodec/half.h"

namespace kvferry::codec::cpu {
namespace {

constexpr int kMaxHeadDim = 256;

// One side of a head as fp32 values, one at a time.
struct Side {
  const std::uint16_t* rows;
  std::int64_t token_stride;
  Raw16 type;
  float at(int token, int channel) const {
    return FloatFromRaw16(type, rows[token * token_stride + channel]);
  }
};

Side KSide(const HeadRows& rows) { return {rows.k, rows.token_stride, rows.type}; }
Side VSide(const HeadRows& rows) { return {rows.v, rows.token_stride, rows.type}; }

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

float LargestOf(const Side& side, int token, int head_dim) {
  float largest = 0;
  for (int channel = 0; channel < head_dim; ++channel) {
    largest = std::max(largest, std::fabs(side.at(token, channel)));
  }
  return largest;
}

bool QuantizeInt8Side(const Side& side, int head_dim, std::byte* codes, std::byte* scales) {
  for (int token = 0; token < kBlockTokens; ++token) {
    const Int8Scale scale = MakeInt8Scale(LargestOf(side, token, head_dim));
    if (!scale.fits) return false;
    StoreU16(scales, token, scale.scale);
    for (int channel = 0; channel < head_dim; ++channel) {
      codes[token * head_dim + channel] =
          static_cast<std::byte>(MakeInt8Code(side.at(token, channel), scale));
    }
  }
  return true;
}

void CopyRaw16Side(const Side& side, int head_dim, std::byte* out) {
  for (int token = 0; token < kBlockTokens; ++token) {
    std::memcpy(out + std::size_t{2} * token * head_dim, side.rows + token * side.token_stride,
                std::size_t{2} * head_dim);
  }
}

bool AllFinite(const Side& side, int head_dim) {
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int channel = 0; channel < head_dim; ++channel) {
      if (!std::isfinite(side.at(token, channel))) return false;
    }
  }
  return true;
}

bool Quantize(const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
  const Side k = KSide(rows), v = VSide(rows);
  if (!AllFinite(k, spec.head_dim) || !AllFinite(v, spec.head_dim)) return false;
  switch (spec.kind) {
    case BlockKind::kRaw16: {
      const format::Raw16Layout at = format::Raw16Block(spec.head_dim);
      CopyRaw16Side(k, spec.head_dim, block + at.k);
      CopyRaw16Side(v, spec.head_dim, block + at.v);
      return true;
    }
    case BlockKind::kInt8: {
      const format::Int8Layout at = format::Int8Block(spec.head_dim);
      return QuantizeInt8Side(k, spec.head_dim, block + at.k_codes, block + at.k_scale) &&
             QuantizeInt8Side(v, spec.head_dim, block + at.v_codes, block + at.v_scale);
    }
    case BlockKind::kScalar:
      break;
  }
  return QuantizeScalarSide(k, spec, false, block) && QuantizeScalarSide(v, spec, true, block);
}

// Adds 64 tokens or fewer whose scores are known; value(token, channel) is the V that they weigh.
template <class Value>
void AddTokens(const float* scores, int tokens, int head, const QueryGroup& group,
               const SoftmaxState& state, Value value) {
  const int d = group.head_dim;
  const float top = *std::max_element(scores, scores + tokens);
  const float m = std::max(state.m[head], top);
  const float decay = std::exp2(state.m[head] - m);
  float* o = state.o + static_cast<std::ptrdiff_t>(head) * d;
  for (int channel = 0; channel < d; ++channel) o[channel] *= decay;
  state.l[head] *= decay;
  state.m[head] = m;
  for (int token = 0; token < tokens; ++token) {
    const float p = std::exp2(scores[token] - m);
    state.l[head] += p;
    for (int channel = 0; channel < d; ++channel) o[channel] += p * value(token, channel);
  }
}

void AttendRaw(const HeadRows& rows, int tokens, const QueryGroup& group,
               const SoftmaxState& state) {
  const Side k = KSide(rows), v = VSide(rows);
  float scores[kBlockTokens];
  for (int begin = 0; begin < tokens; begin += kBlockTokens) {
    const int count = std::min(kBlockTokens, tokens - begin);
    for (int head = 0; head < group.heads; ++head) {
      const float* q = group.q + static_cast<std::ptrdiff_t>(head) * group.head_dim;
      for (int token = 0; token < count; ++token) {
        float sum = 0;
        for (int channel = 0; channel < group.head_dim; ++channel) {
          sum += q[channel] * k.at(begin + token, channel);
        }
        scores[token] = sum;
      }
      AddTokens(scores, count, head, group, state,
                [&](int token, int channel) { return v.at(begin + token, channel); });
    }
  }
}

void AttendScalarBlock(const std::byte* block, const BlockSpec& spec, const QueryGroup& group,
                       const SoftmaxState& state) {
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

void AttendInt8Block(const std::byte* block, const BlockSpec& spec, const QueryGroup& group,
                     const SoftmaxState& state) {
  const format::Int8Layout at = format::Int8Block(spec.head_dim);
  const int d = spec.head_dim;
  const auto code = [&](int offset, int token, int channel) {
    return static_cast<float>(static_cast<std::int8_t>(block[offset + token * d + channel]));
  };
  for (int head = 0; head < group.heads; ++head) {
    const float* q = group.q + static_cast<std::ptrdiff_t>(head) * d;
    float scores[kBlockTokens];
    for (int token = 0; token < kBlockTokens; ++token) {
      float sum = 0;
      for (int channel = 0; channel < d; ++channel) {
        sum += q[channel] * code(at.k_codes, token, channel);
      }
      scores[token] = sum * FloatFromHalf(LoadU16(block + at.k_scale, token));
    }
    AddTokens(scores, kBlockTokens, head, group, state, [&](int token, int channel) {
      return FloatFromHalf(LoadU16(block + at.v_scale, token)) * code(at.v_codes, token, channel);
    });
  }
}

void AttendBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                  const SoftmaxState& state) {
  for (std::size_t i = 0; i < blocks.count; ++i) {
    const std::byte* block = blocks.pages[i] + blocks.head_offset;
    if (spec.kind == BlockKind::kScalar) {
      AttendScalarBlock(block, spec, group, state);
    } else if (spec.kind == BlockKind::kInt8) {
      AttendInt8Block(block, spec, group, state);
    } else {
      const auto* k = reinterpret_cast<const std::uint16_t*>(block);
      const HeadRows rows = {k, k + kBlockTokens * spec.head_dim, spec.head_dim, spec.raw_type};
      AttendRaw(rows, kBlockTokens, group, state);
    }
  }
}

std::optional<BlockFault> FindSideFault(const Side& side, const BlockSpec& spec, bool is_v) {
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int channel = 0; channel < spec.head_dim; ++channel) {
      if (!std::isfinite(side.at(token, channel))) return BlockFault{is_v, true, token, channel};
    }
  }
  std::optional<BlockFault> fault;
  if (spec.kind == BlockKind::kInt8) {
    for (int token = 0; token < kBlockTokens && !fault; ++token) {
      if (!MakeInt8Scale(LargestOf(side, token, spec.head_dim)).fits) {
        fault = BlockFault{is_v, false, token, -1};
      }
    }
  } else if (spec.kind == BlockKind::kScalar) {
    const auto levels = static_cast<float>((1 << (is_v ? spec.v_bits : spec.k_bits)) - 1);
    ForEachGroup(spec, is_v, [&](const Range& range) {
      if (fault || ScaleOf(side, range, levels).fits) return;
      fault = is_v ? BlockFault{true, false, range.token_begin, -1}
                   : BlockFault{false, false, -1, range.channel_begin};
    });
  }
  return fault;
}

}  // namespace

std::optional<BlockFault> FindFault(const HeadRows& rows, const BlockSpec& spec) {
  const std::optional<BlockFault> fault = FindSideFault(KSide(rows), spec, false);
  return fault ? fault : FindSideFault(VSide(rows), spec, true);
}

void DequantizeBlock(const std::byte* block, const BlockSpec& spec, float* k, float* v) {
  const int d = spec.head_dim;
  const format::Raw16Layout raw = format::Raw16Block(d);
  const format::Int8Layout int8 = format::Int8Block(d);
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int channel = 0; channel < d; ++channel) {
      const int i = token * d + channel;
      if (spec.kind == BlockKind::kRaw16) {
        k[i] = FloatFromRaw16(spec.raw_type, LoadU16(block + raw.k, i));
        v[i] = FloatFromRaw16(spec.raw_type, LoadU16(block + raw.v, i));
        continue;
      }
      if (spec.kind == BlockKind::kInt8) {
        const auto code = [&](int at) {
          return static_cast<float>(static_cast<std::int8_t>(block[at + i]));
        };
        k[i] = FloatFromHalf(LoadU16(block + int8.k_scale, token)) * code(int8.k_codes);
        v[i] = FloatFromHalf(LoadU16(block + int8.v_scale, token)) * code(int8.v_codes);
        continue;
      }
      const format::ScalarLayout at = LayoutOf(spec);
      const auto value = [&](int codes, int scale, int min, int index,
                             const format::CodePlace& place, int bits) {
        return FloatFromHalf(LoadU16(block + scale, index)) *
                   static_cast<float>(GetCode(block + codes, place, bits)) +
               FloatFromHalf(LoadU16(block + min, index));
      };
      k[i] = value(at.k_codes, at.k_scale, at.k_min,
                   format::KScaleIndex(d, spec.k_group_tokens, token, channel),
                   format::KPlace(spec.k_bits, d, token, channel), spec.k_bits);
      v[i] = value(at.v_codes, at.v_scale, at.v_min,
                   format::VScaleIndex(spec.v_group_channels, token, channel),
                   format::VPlace(spec.v_bits, d, token, channel), spec.v_bits);
    }
  }
}

const Ops& ReferenceOps() {
  static constexpr Ops kOps = {[] { return "scalar"; }, Quantize, AttendRaw, AttendBlocks};
  return kOps;
}

}  // namespace kvferry::codec::cpu
