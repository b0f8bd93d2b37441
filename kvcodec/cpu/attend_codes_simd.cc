#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/attend_codes_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/score_codes-inl.h"
#include "kvcodec/cpu/weigh_codes-inl.h"
// clang-format on

// Attention on KVB blocks without dequantizing. A 64-byte line of codes holds, for one g, the lanes
// j = 0..3 and four slots each (docs/format.md); masking a line gives pairs of 16-bit codes, which
// meet 16-bit q * k_scale or p * v_scale in a pairwise multiply-add. Both are rounded to 15 bits
// and a sign per query head, block and scale group. Mins never touch a code: sum(q * k_min) is one
// number per head and sum(p * v_min) one per head and channel group.
HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

#if !KVFERRY_SIMD_TARGET

void AttendScalarBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                        const SoftmaxState& state) {
  ReferenceOps().attend_blocks(blocks, spec, group, state);
}

#else

// Back from line order to channels, and into the caller's state.
template <int kBits>
void Finish(const Shape<kBits>& shape, int v_group_channels, const BatchState& batch, int h,
            int head, const SoftmaxState& state) {
  constexpr int kFields = Shape<kBits>::kFields;
  const int d = shape.head_dim, columns = shape.columns + (shape.odd ? 1 : 0);
  float* o = state.o + static_cast<std::ptrdiff_t>(head) * d;
  for (int group = 0; group * v_group_channels < d; ++group) {
    float* begin = o + group * v_group_channels;
    for (int c = 0; c < v_group_channels; ++c) {
      begin[c] = begin[c] * batch.decay[h] + batch.min_sum[h][group];
    }
  }
  const float* out = batch.out[h];
  for (int g = 0; g < 8; ++g) {
    for (int column = 0; column < columns; ++column, out += kFields * 4) {
      const bool odd = column == shape.columns;
      for (int slot = 0; slot < 4; ++slot) {
        const int n = odd ? shape.words : column * shape.u + slot % shape.u;
        for (int k = 0; k < (odd ? 4 : kFields); ++k) {
          const int pair = n * kFields + k;
          o[pair / 4 * 32 + 4 * g + pair % 4] += out[k * 4 + slot];
        }
      }
    }
  }
  state.m[head] = batch.m[h];
  state.l[head] = batch.l[h];
}

// One block for a batch of kHeads query heads.
template <int kBits>
struct KStep {
  template <int kHeads>
  static void Run(const std::byte* block, const format::ScalarLayout& at, const BlockSpec& spec,
                  const float* q, Work& work, BlockAhead& ahead) {
    PrepareQueries<kHeads>(block, at, spec, q, work);
    ScoreCodes<kBits, kHeads>(block + at.k_codes, Shape<kBits>(spec.head_dim), work, ahead);
  }
};

template <int kBits>
struct VStep {
  template <int kHeads>
  static void Run(const std::byte* block, const format::ScalarLayout& at, const BlockSpec& spec,
                  const Classes& classes, Work& work, BatchState& state, BlockAhead& ahead) {
    const Shape<kBits> shape(spec.head_dim);
    const int out_floats = 32 * (shape.columns + (shape.odd ? 1 : 0)) * Shape<kBits>::kFields;
    PrepareWeights<kHeads>(block, at, classes, spec.head_dim / spec.v_group_channels, shape.u,
                           out_floats, work, state);
    AddCodes<kBits, kHeads>(block + at.v_codes, shape, classes, work, state, ahead);
  }
};

// Calls fn with the bit width as a constant.
template <class Fn>
HWY_INLINE void WithBits(int bits, Fn fn) {
  switch (bits) {
    case 1:
      return fn(std::integral_constant<int, 1>());
    case 2:
      return fn(std::integral_constant<int, 2>());
    case 3:
      return fn(std::integral_constant<int, 3>());
    case 4:
      return fn(std::integral_constant<int, 4>());
    default:
      return fn(std::integral_constant<int, 8>());
  }
}

template <class Step, class... Args>
HWY_INLINE void WithHeads(int heads, Args&&... args) {
  switch (heads) {
    case 1:
      return Step::template Run<1>(args...);
    case 2:
      return Step::template Run<2>(args...);
    case 3:
      return Step::template Run<3>(args...);
    default:
      return Step::template Run<4>(args...);
  }
}

// Up to kSuperBatch heads starting at `head`.
void AttendHeads(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group, int head,
                 const SoftmaxState& state) {
  const format::ScalarLayout at = format::ScalarBlock(spec.head_dim, spec.k_bits, spec.v_bits,
                                                      spec.k_group_tokens, spec.v_group_channels);
  const int heads = std::min(kSuperBatch, group.heads - head);
  const int batches = (heads + kBatch - 1) / kBatch;
  Work work;
  work.ahead_bytes = (at.bytes / 64 + kAheadSteps - 1) / kAheadSteps * 64;
  BatchState batch[kSuperBatch / kBatch];
  for (int h = 0; h < heads; ++h) {
    BatchState& own = batch[h / kBatch];
    const int i = h % kBatch;
    std::fill_n(own.out[i], kMaxOut, 0.0f);
    std::fill_n(own.min_sum[i], kMaxGroups, 0.0f);
    own.m[i] = state.m[head + h];
    own.l[i] = state.l[head + h];
    own.decay[i] = 1;
  }
  Classes classes;
  WithBits(spec.v_bits, [&](auto bits) HWY_ATTR {
    classes = MakeClasses(Shape<bits>(spec.head_dim), spec.v_group_channels);
  });
  for (std::size_t n = 0; n < blocks.count; ++n) {
    const std::byte* block = blocks.pages[n] + blocks.head_offset;
    BlockAhead ahead = {blocks.after, blocks.after == nullptr ? 0 : at.bytes};
    if (n + 1 < blocks.count) ahead = {blocks.pages[n + 1] + blocks.head_offset, at.bytes};
    for (int b = 0; b < batches; ++b) {
      const int count = std::min(kBatch, heads - b * kBatch);
      const float* q = group.q + static_cast<std::ptrdiff_t>(head + b * kBatch) * spec.head_dim;
      WithBits(spec.k_bits, [&](auto bits) HWY_ATTR {
        WithHeads<KStep<bits> >(count, block, at, spec, q, work, ahead);
      });
      WithBits(spec.v_bits, [&](auto bits) HWY_ATTR {
        WithHeads<VStep<bits> >(count, block, at, spec, classes, work, batch[b], ahead);
      });
    }
  }
  for (int h = 0; h < heads; ++h) {
    WithBits(spec.v_bits, [&](auto bits) HWY_ATTR {
      Finish(Shape<bits>(spec.head_dim), spec.v_group_channels, batch[h / kBatch], h % kBatch,
             head + h, state);
    });
  }
}

void AttendScalarBlocks(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                        const SoftmaxState& state) {
  for (int head = 0; head < group.heads; head += kSuperBatch) {
    AttendHeads(blocks, spec, group, head, state);
  }
}

#endif

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::codec::cpu {

HWY_EXPORT(AttendScalarBlocks);

void AttendScalarBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec,
                            const QueryGroup& group, const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(AttendScalarBlocks)(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
#endif
