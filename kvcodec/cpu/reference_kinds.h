#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "kvcodec/cpu/ops.h"
#include "kvcodec/cpu/reference.h"
#include "kvcodec/half.h"

// What the scalar reference knows about each kind of block: one table of functions per kind.
namespace kvferry::codec::cpu {

// One side of a head as fp32 values, one at a time.
struct Side {
  const std::uint16_t* rows;
  std::int64_t token_stride;
  Raw16 type;
  float at(int token, int channel) const {
    return FloatFromRaw16(type, rows[token * token_stride + channel]);
  }
};
inline Side KSide(const HeadRows& rows) { return {rows.k, rows.token_stride, rows.type}; }
inline Side VSide(const HeadRows& rows) { return {rows.v, rows.token_stride, rows.type}; }

struct ReferenceKind {
  // 64 tokens of finite values. false: a scale does not fit.
  bool (*quantize)(const HeadRows& rows, const BlockSpec& spec, std::byte* block);
  // The first scale of a side of finite values that does not fit.
  std::optional<BlockFault> (*find_fault)(const Side& side, const BlockSpec& spec, bool is_v);
  void (*attend)(const std::byte* block, const BlockSpec& spec, const BlockPlace& place,
                 const QueryGroup& group, const SoftmaxState& state);
  void (*dequantize)(const std::byte* block, const BlockSpec& spec, const BlockPlace& place,
                     float* k, float* v);
};

const ReferenceKind& ScalarReference();
const ReferenceKind& Int8Reference();
const ReferenceKind& Fp8Reference();
const ReferenceKind& LutReference();
const ReferenceKind& CoupledReference();

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

}  // namespace kvferry::codec::cpu
