// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_CODE_LINES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_CODE_LINES_INL_H_
#undef KVFERRY_KVCODEC_CPU_CODE_LINES_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_CODE_LINES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/softmax-inl.h"
#include "kvcodec/format.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// What scores and weighted sums share: the lines of a KVB block, and the state of a batch of query
// heads.
using DI = hn::CappedTag<std::int32_t, 16>;
using D16 = hn::Repartition<std::int16_t, DI>;
using DU = hn::RebindToUnsigned<DI>;
using DW = hn::Repartition<std::uint64_t, DI>;
using D8 = hn::Repartition<std::uint8_t, DI>;
using DF = hn::CappedTag<float, 8>;
using D4 = hn::CappedTag<std::int32_t, 4>;
using D4F = hn::CappedTag<float, 4>;
using VI = hn::VFromD<DI>;
using VF = hn::VFromD<DF>;
using V4 = hn::VFromD<D4>;

constexpr int kLine = 16;  // 32-bit words of a line: [j 0..3][slot 0..3]
constexpr int kLanes = hn::MaxLanes(DI());
constexpr int kParts = kLine / kLanes;
constexpr int kLanesF = hn::MaxLanes(DF());
constexpr int kBatch = 4;        // query heads that share one pass over a line
constexpr int kSuperBatch = 16;  // query heads that share one pass over a block
constexpr int kMaxHeadDim = 256;
constexpr int kMaxPairs = kMaxHeadDim / 8;
constexpr int kMaxGroups = kMaxHeadDim / 32;
constexpr int kMaxOut = 512;  // floats of one head's output in line order
constexpr float kTop = 32767.0f;

// How the words of one side are arranged (format.h): `words` per lane and tile in slots of which
// `u` belong to one tile; with `odd`, a last group of 32 channels that shares words between
// neighbours in g.
template <int kBits>
struct Shape {
  static constexpr bool kShared = kBits == 1 || kBits == 3;
  static constexpr int kFields = kShared ? 8 : 8 / kBits;  // pairs of a word, or of three
  static constexpr int kStreams = kBits == 3 ? 3 : 1;
  explicit Shape(int d)
      : head_dim(d),
        words(kShared ? d / 64 : d * kBits / 64),
        u(format::internal::Gcd4(words)),
        columns(words / u),
        odd(kShared && d % 64 != 0) {}
  int head_dim, words, u, columns;
  bool odd;

  std::size_t stream_bytes() const { return std::size_t{8} * head_dim; }
};

template <int kShift>
HWY_INLINE VI Right(VI word) {
  if constexpr (kShift == 0) {
    return word;
  } else {
    return hn::BitCast(DI(), hn::ShiftRight<kShift>(hn::BitCast(DU(), word)));
  }
}

// The words of one part of a line: one vector, three at 3 bits.
template <int kBits>
struct Line {
  VI x[Shape<kBits>::kStreams];

  HWY_INLINE void Load(const std::byte* line, std::size_t stream_bytes, int part) {
    const DI di;
    for (int m = 0; m < Shape<kBits>::kStreams; ++m) {
      x[m] = hn::LoadU(
          di, reinterpret_cast<const std::int32_t*>(line + m * stream_bytes) + part * kLanes);
    }
  }

  // Codes of pair k for byte r, two 16-bit lanes per word.
  template <int k, int r>
  HWY_INLINE hn::VFromD<D16> Field() const {
    const DI di;
    const D16 d16;
    constexpr std::int32_t kOnes = 0x00010001;
    if constexpr (kBits != 3 && 8 * r + kBits * (k + 1) == 16) {  // the top of a half: no mask
      const hn::RebindToUnsigned<D16> du16;
      return hn::BitCast(d16, hn::ShiftRight<16 - kBits>(hn::BitCast(du16, x[0])));
    } else if constexpr (kBits != 3) {
      const VI mask = hn::Set(di, ((1 << kBits) - 1) * kOnes);
      return hn::BitCast(d16, hn::And(Right<8 * r + kBits * k>(x[0]), mask));
    } else if constexpr (k == 7 && r == 1) {
      const VI bit0 = hn::And(Right<15>(x[0]), hn::Set(di, kOnes));
      const VI bit1 = hn::And(Right<14>(x[1]), hn::Set(di, 2 * kOnes));
      const VI bit2 = hn::And(Right<13>(x[2]), hn::Set(di, 4 * kOnes));
      return hn::BitCast(d16, hn::Or(hn::Or(bit0, bit1), bit2));
    } else {
      constexpr int kWord = k < 6 ? k / 2 : k == 6 ? r : 2;
      constexpr int kShift = k < 6 ? 9 * r + 3 * (k % 2) : 6;
      return hn::BitCast(d16, hn::And(Right<kShift>(x[kWord]), hn::Set(di, 7 * kOnes)));
    }
  }
};

// sum + a0 * b0 + a1 * b1 in every 32-bit lane.
HWY_INLINE VI AddPairs(hn::VFromD<D16> a, hn::VFromD<D16> b, VI sum) {
#if HWY_TARGET == HWY_AVX3_DL
  // The intrinsic wants a compiler option that Highway 1.0.3 does not set for this target.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "vm"(b.raw));
  return sum;
#else
  VI unused = sum;
  sum = hn::ReorderWidenMulAccumulate(DI(), a, b, sum, unused);
  // Keeps the compiler from turning chains of integer sums into trees, which spills every register.
  asm("" : "+v"(sum.raw));
  return sum;
#endif
}

// Sum over the lanes j, 16 bytes each: one value per slot.
template <class D>
HWY_INLINE hn::VFromD<hn::CappedTag<hn::TFromD<D>, 4>> SumLanes(D, hn::VFromD<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumLanes(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

using V8 = hn::VFromD<hn::CappedTag<std::int32_t, 8>>;
HWY_INLINE V8 SumHalves(V8 a, V8 b) {
  return hn::Add(V8{_mm256_permute2x128_si256(a.raw, b.raw, 0x20)},
                 V8{_mm256_permute2x128_si256(a.raw, b.raw, 0x31)});
}

// Two of them: [slots of a][slots of b].
template <class V>
HWY_INLINE V8 SumLanePairs(V a, V b) {
  const hn::CappedTag<std::int32_t, 8> d8;
  if constexpr (!std::is_same_v<V, V8>) {
    return SumHalves(hn::Add(hn::LowerHalf(d8, a), hn::UpperHalf(d8, a)),
                     hn::Add(hn::LowerHalf(d8, b), hn::UpperHalf(d8, b)));
  } else {
    return SumHalves(a, b);
  }
}

// The next block of the head, asked for line by line while this one is worked on: blocks of one
// head lie pages apart, where the hardware does not look ahead.
struct BlockAhead {
  const std::byte* next = nullptr;
  int bytes = 0;

  HWY_INLINE void Fetch(int count) {
    const int part = std::min(bytes, count);
    for (int i = 0; i < part; i += 64) hwy::Prefetch(next + i);
    next += part;
    bytes -= part;
  }
};
constexpr int kAheadSteps = 16;  // Fetch calls per block: one per g, for K and for V

// For lambdas that hold vectors: the compiler must not make calls of them.
#define KVFERRY_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))

template <int kBegin, int kEnd, class Fn>
HWY_INLINE void Unroll(Fn fn) {
  if constexpr (kBegin < kEnd) {
    fn(std::integral_constant<int, kBegin>());
    Unroll<kBegin + 1, kEnd>(fn);
  }
}

// As many fields at once as the registers hold.
template <int kBits, int kHeads>
constexpr int FieldsAtOnce() {
  constexpr int kRegisters = kParts == 1 ? 16 : 8;
  int fields = std::min(4, Shape<kBits>::kFields);
  while (fields > 1 && fields * kHeads > kRegisters) fields /= 2;
  return fields;
}

// What one block and one batch of heads need between the steps.
struct Work {
  HWY_ALIGN std::int32_t q[kMaxPairs * kBatch * kLine];  // [pair][head][line]
  // [head][g][r][tile], before scaling.
  HWY_ALIGN std::int32_t raw_scores[kBatch * kBlockTokens];
  HWY_ALIGN float scores[kBatch][kBlockTokens];          // in the order of V scales, then p
  HWY_ALIGN float k_scale[kBatch][8], k_min[kBatch][8];  // by [r][tile]
  // [class][tile part][r][head][line]
  HWY_ALIGN std::int32_t p[kMaxGroups * 4 * 2 * kBatch * kLine];
  HWY_ALIGN float v_scale[kMaxGroups][kBatch][8];  // by class and slot, twice
  int ahead_bytes = 0;                             // of one BlockAhead::Fetch
};

// Softmax state of a batch of heads over the blocks of one call. Output is kept in line order.
struct BatchState {
  HWY_ALIGN float out[kBatch][kMaxOut];  // [g][column][field][slot]
  float m[kBatch], l[kBatch];
  float min_sum[kBatch][kMaxGroups];  // sum of p * v_min
  float decay[kBatch];                // of the state before this call
};

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
