#include "kvcodec/cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "kvcodec/code_io.h"
#include "kvcodec/cpu/reference_kinds.h"
#include "kvcodec/format.h"

namespace kvferry::codec::cpu {
namespace {

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

// kRaw16 blocks: the values as they are.
void CopySide(const Side& side, int head_dim, std::byte* out) {
  for (int token = 0; token < kBlockTokens; ++token) {
    std::memcpy(out + std::size_t{2} * token * head_dim, side.rows + token * side.token_stride,
                std::size_t{2} * head_dim);
  }
}

constexpr ReferenceKind kRaw16Reference = {
    .quantize =
        [](const HeadRows& rows, const BlockSpec& spec, std::byte* block) {
          const format::Raw16Layout at = format::Raw16Block(spec.head_dim);
          CopySide(KSide(rows), spec.head_dim, block + at.k);
          CopySide(VSide(rows), spec.head_dim, block + at.v);
          return true;
        },
    .find_fault = [](const Side&, const BlockSpec&, bool) -> std::optional<BlockFault> {
      return std::nullopt;
    },
    .attend =
        [](const std::byte* block, const BlockSpec& spec, const BlockPlace&,
           const QueryGroup& group, const SoftmaxState& state) {
          const format::Raw16Layout at = format::Raw16Block(spec.head_dim);
          const HeadRows rows = {reinterpret_cast<const std::uint16_t*>(block + at.k),
                                 reinterpret_cast<const std::uint16_t*>(block + at.v),
                                 spec.head_dim, spec.raw_type};
          AttendRaw(rows, kBlockTokens, group, state);
        },
    .dequantize =
        [](const std::byte* block, const BlockSpec& spec, const BlockPlace&, float* k, float* v) {
          const format::Raw16Layout at = format::Raw16Block(spec.head_dim);
          for (int i = 0; i < kBlockTokens * spec.head_dim; ++i) {
            k[i] = FloatFromRaw16(spec.raw_type, LoadU16(block + at.k, i));
            v[i] = FloatFromRaw16(spec.raw_type, LoadU16(block + at.v, i));
          }
        }};

const ReferenceKind& ReferenceOf(BlockKind kind) {
  switch (kind) {
    case BlockKind::kRaw16:
      return kRaw16Reference;
    case BlockKind::kInt8:
      return Int8Reference();
    case BlockKind::kFp8:
      return Fp8Reference();
    case BlockKind::kLut:
      return LutReference();
    case BlockKind::kCoupled:
      return CoupledReference();
    case BlockKind::kScalar:
      return ScalarReference();
  }
  std::abort();  // every caller has validated its spec
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
  return AllFinite(KSide(rows), spec.head_dim) && AllFinite(VSide(rows), spec.head_dim) &&
         ReferenceOf(spec.kind).quantize(rows, spec, block);
}

void AttendBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                  const SoftmaxState& state) {
  const ReferenceKind& kind = ReferenceOf(spec.kind);
  for (std::size_t i = 0; i < blocks.count; ++i) {
    BlockPlace place = blocks.place;
    place.token += static_cast<std::int64_t>(i) * kBlockTokens;
    kind.attend(blocks.pages[i] + blocks.head_offset, spec, place, group, state);
  }
}

std::optional<BlockFault> FindSideFault(const Side& side, const BlockSpec& spec, bool is_v) {
  for (int token = 0; token < kBlockTokens; ++token) {
    for (int channel = 0; channel < spec.head_dim; ++channel) {
      if (!std::isfinite(side.at(token, channel))) return BlockFault{is_v, true, token, channel};
    }
  }
  return ReferenceOf(spec.kind).find_fault(side, spec, is_v);
}

}  // namespace

std::optional<BlockFault> FindFault(const HeadRows& rows, const BlockSpec& spec) {
  const std::optional<BlockFault> fault = FindSideFault(KSide(rows), spec, false);
  return fault ? fault : FindSideFault(VSide(rows), spec, true);
}

void DequantizeBlock(const std::byte* block, const BlockSpec& spec, const BlockPlace& place,
                     float* k, float* v) {
  ReferenceOf(spec.kind).dequantize(block, spec, place, k, v);
}

const Ops& ReferenceOps() {
  static constexpr Ops kOps = {[] { return "scalar"; }, Quantize, AttendRaw, AttendBlocks};
  return kOps;
}

}  // namespace kvferry::codec::cpu
