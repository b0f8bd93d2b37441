#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kvcodec/cpu/simd.h"
#include "kvcodec/format.h"

// clang-format off
#include "kvcodec/cpu/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcodec/cpu/attend_codes_simd.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kvcodec/cpu/softmax-inl.h"
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

 private:
  template <int kShift>
  static HWY_INLINE VI Right(VI word) {
    if constexpr (kShift == 0) {
      return word;
    } else {
      return hn::BitCast(DI(), hn::ShiftRight<kShift>(hn::BitCast(DU(), word)));
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
HWY_INLINE V4 SumLanes(D, hn::VFromD<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return SumLanes(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

using V8 = hn::VFromD<hn::CappedTag<std::int32_t, 8> >;
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
struct Ahead {
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
  int ahead_bytes = 0;                             // of one Ahead::Fetch
};

// Softmax state of a batch of heads over the blocks of one call. Output is kept in line order.
struct BatchState {
  HWY_ALIGN float out[kBatch][kMaxOut];  // [g][column][field][slot]
  float m[kBatch], l[kBatch];
  float min_sum[kBatch][kMaxGroups];  // sum of p * v_min
  float decay[kBatch];                // of the state before this call
};

// --- K: scores ---

// q * scale as 16 bits, spread to the lanes of a line; sums of q * min.
template <int kHeads>
void PrepareQueries(const std::byte* block, const format::ScalarLayout& at, const BlockSpec& spec,
                    const float* q, Work& work) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<std::int16_t, DF> d16;
  const int d = spec.head_dim, rows = kBlockTokens / spec.k_group_tokens;
  HWY_ALIGN float scaled[kHeads][kMaxHeadDim];
  HWY_ALIGN std::int16_t compact[kHeads][2][kMaxHeadDim];
  for (int row = 0; row < rows; ++row) {
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(block + at.k_scale) + row * d;
    const auto* mins = reinterpret_cast<const hwy::float16_t*>(block + at.k_min) + row * d;
    VF top[kHeads], constant[kHeads];
    for (int h = 0; h < kHeads; ++h) top[h] = constant[h] = hn::Zero(df);
    for (int c = 0; c < d; c += kLanesF) {
      const VF scale = hn::PromoteTo(df, hn::LoadU(dh, scales + c));
      const VF min = hn::PromoteTo(df, hn::LoadU(dh, mins + c));
      for (int h = 0; h < kHeads; ++h) {
        const VF query = hn::LoadU(df, q + h * d + c);
        const VF product = hn::Mul(query, scale);
        hn::Store(product, df, &scaled[h][c]);
        top[h] = hn::Max(top[h], hn::Abs(product));
        constant[h] = hn::MulAdd(query, min, constant[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      const float largest = hn::GetLane(hn::MaxOfLanes(df, top[h]));
      const VF factor = hn::Set(df, largest > 0 ? kTop / largest : 0.0f);
      for (int c = 0; c < d; c += kLanesF) {
        const auto code = RoundToInt(hn::Mul(hn::Load(df, &scaled[h][c]), factor));
        hn::Store(hn::DemoteTo(d16, code), d16, &compact[h][row][c]);
      }
      const float sum = hn::GetLane(hn::SumOfLanes(df, constant[h]));
      // Tiles of this row: all four, or a pair of them; both r.
      for (int i = 0; i < 8; ++i) {
        if (i % 4 * rows / 4 != row) continue;
        work.k_scale[h][i] = largest / kTop;
        work.k_min[h][i] = sum;
      }
    }
  }
  const DI di;
  const DW dw;
  for (int h = 0; h < kHeads; ++h) {
    for (int w = 0; w < d / 32; ++w) {
      for (int part = 0; part < kParts; ++part) {
        const auto load = [&](int row) HWY_ATTR {  // [j][f]
          return hn::LoadU(
              di, reinterpret_cast<const std::int32_t*>(&compact[h][row][32 * w]) + part * kLanes);
        };
        const VI first = load(0);
        std::int32_t* out = work.q + (4 * w * kHeads + h) * kLine + part * kLanes;
        if (rows == 1) {
          Unroll<0, 4>([&](auto f) KVFERRY_INLINE_LAMBDA {
            hn::Store(hn::Broadcast<f>(first), di, out + f * kHeads * kLine);
          });
          continue;
        }
        const VI last = load(1);
        Unroll<0, 4>([&](auto f) KVFERRY_INLINE_LAMBDA {
          const auto low = hn::BitCast(dw, hn::Broadcast<f>(first));
          const auto high = hn::BitCast(dw, hn::Broadcast<f>(last));
          hn::Store(hn::BitCast(di, hn::InterleaveLower(dw, low, high)), di,
                    out + f * kHeads * kLine);
        });
      }
    }
  }
}

// Adds fields [kBegin, kEnd) of a line to the sums of both token halves r; q: of the first field.
template <int kBits, int kHeads, int kBegin, int kEnd>
HWY_INLINE void AddScores(const Line<kBits>& line, const std::int32_t* q, int part,
                          VI (&sum)[2][kHeads]) {
  const DI di;
  const D16 d16;
  Unroll<kBegin, kEnd>([&](auto k) KVFERRY_INLINE_LAMBDA {
    const auto low = line.template Field<k, 0>();
    const auto high = line.template Field<k, 1>();
    for (int h = 0; h < kHeads; ++h) {
      const auto query =
          hn::BitCast(d16, hn::Load(di, q + ((k - kBegin) * kHeads + h) * kLine + part * kLanes));
      sum[0][h] = AddPairs(low, query, sum[0][h]);
      sum[1][h] = AddPairs(high, query, sum[1][h]);
    }
  });
}

template <int kBits, int kHeads>
void ScoreCodes(const std::byte* codes, const Shape<kBits>& shape, Work& work, Ahead& ahead) {
  const DI di;
  constexpr int kFields = Shape<kBits>::kFields;
  for (int g = 0; g < 8; ++g) {
    ahead.Fetch(work.ahead_bytes);
    VI sum[2][kHeads];
    for (int h = 0; h < kHeads; ++h) sum[0][h] = sum[1][h] = hn::Zero(di);
    Line<kBits> line;
    for (int n = 0; n < shape.words; ++n) {
      const std::int32_t* q = work.q + n * kFields * kHeads * kLine;
      for (int part = 0; part < kParts; ++part) {
        line.Load(codes + n * format::kPlaneBytes + g * 64, shape.stream_bytes(), part);
        AddScores<kBits, kHeads, 0, kFields>(line, q, part, sum);
      }
    }
    if constexpr (Shape<kBits>::kShared) {
      if (shape.odd) {
        const std::int32_t* q = work.q + shape.words * kFields * kHeads * kLine;
        for (int part = 0; part < kParts; ++part) {
          line.Load(codes + shape.words * format::kPlaneBytes + g / 2 * 64, shape.stream_bytes(),
                    part);
          if (g % 2 == 0) {
            AddScores<kBits, kHeads, 0, 4>(line, q, part, sum);
          } else {
            AddScores<kBits, kHeads, 4, 8>(line, q, part, sum);
          }
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      hn::Store(SumLanePairs(sum[0][h], sum[1][h]), hn::CappedTag<std::int32_t, 8>(),
                work.raw_scores + h * kBlockTokens + g * 8);
    }
  }
}

// Scales the scores of one head and puts them into the order of V scales: [j][tile / 2][r][tile %
// 2][h].
void OrderScores(int h, Work& work) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const VF scale = hn::Load(df, work.k_scale[h]), min = hn::Load(df, work.k_min[h]);
  const std::int32_t* raw = work.raw_scores + h * kBlockTokens;
  for (int j = 0; j < 4; ++j) {
    const auto even = hn::ConvertTo(df, hn::Load(di, raw + 16 * j));
    const auto odd = hn::ConvertTo(df, hn::Load(di, raw + 16 * j + 8));
    const VF a = hn::MulAdd(even, scale, min), b = hn::MulAdd(odd, scale, min);
    hn::Store(hn::InterleaveLower(df, a, b), df, work.scores[h] + 16 * j);
    hn::Store(hn::InterleaveUpper(df, a, b), df, work.scores[h] + 16 * j + 8);
  }
}

// --- V: weighted sums ---

// Which scale groups the slots of a column and field half need. Columns with equal groups are one
// class.
struct Classes {
  int count = 0;
  std::array<std::array<std::uint8_t, 4>, kMaxGroups> groups{};  // by slot
  std::array<std::array<std::uint8_t, 2>, 8> of{};  // [column, the odd group last][field half]
};

template <int kBits>
Classes MakeClasses(const Shape<kBits>& shape, int v_group_channels) {
  Classes classes;
  constexpr int kFields = Shape<kBits>::kFields;
  for (int column = 0; column < shape.columns + (shape.odd ? 1 : 0); ++column) {
    for (int half = 0; half < (kFields == 8 ? 2 : 1); ++half) {
      std::array<std::uint8_t, 4> groups{};
      for (int slot = 0; slot < 4; ++slot) {
        const int n = column * shape.u + slot % shape.u;
        const int w = column == shape.columns ? shape.head_dim / 32 - 1 : n * kFields / 4 + half;
        groups[slot] = static_cast<std::uint8_t>(w * 32 / v_group_channels);
      }
      int id = 0;
      while (id < classes.count && classes.groups[id] != groups) ++id;
      if (id == classes.count) classes.groups[classes.count++] = groups;
      classes.of[column][half] = static_cast<std::uint8_t>(id);
    }
  }
  return classes;
}

// p * v_scale of one head and scale group as 16 bits, [tile / 2][j][r][tile % 2][h]; adds p *
// v_min. Returns what a 16-bit step is worth.
float QuantizeWeights(const std::byte* scale_bytes, const std::byte* min_bytes, const float* p,
                      std::int16_t* compact, float& min_sum) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<std::int16_t, DF> d16;
  const auto* scales = reinterpret_cast<const hwy::float16_t*>(scale_bytes);
  const auto* mins = reinterpret_cast<const hwy::float16_t*>(min_bytes);
  HWY_ALIGN float weights[kBlockTokens];
  VF top = hn::Zero(df), sum = hn::Zero(df);
  for (int i = 0; i < kBlockTokens; i += kLanesF) {
    const VF weight = hn::Load(df, p + i);
    const VF product = hn::Mul(weight, hn::PromoteTo(df, hn::LoadU(dh, scales + i)));
    sum = hn::MulAdd(weight, hn::PromoteTo(df, hn::LoadU(dh, mins + i)), sum);
    top = hn::Max(top, product);
    hn::Store(product, df, weights + i);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(df, top));
  min_sum += hn::GetLane(hn::SumOfLanes(df, sum));
  const VF factor = hn::Set(df, largest > 0 ? kTop / largest : 0.0f);
  for (int i = 0; i < kBlockTokens; i += 8) {  // (j, tile / 2)
    const auto code = RoundToInt(hn::Mul(hn::Load(df, weights + i), factor));
    hn::Store(hn::DemoteTo(d16, code), d16, compact + (i / 8 % 2 * 4 + i / 16) * 8);
  }
  return largest / kTop;
}

// Byte indices that copy 32-bit element e of each 16 bytes to all four.
HWY_INLINE VI CopyElement(VI v, int element) {
  const auto indices = hn::Set(DI(), 0x03020100 + element * 0x04040404);
  return hn::TableLookupBytes(v, indices);
}

// The line of weights for one class, tile part and r: slot s belongs to tile part * (4 / u) + s /
// u.
void SpreadWeights(const std::int16_t (&compact)[kMaxGroups][kBlockTokens],
                   const std::array<std::uint8_t, 4>& groups, int u, int part, int r,
                   std::int32_t* line) {
  const DI di;
  const DW dw;
  for (int i = 0; i < kParts; ++i) {
    const auto slot = [&](int s) HWY_ATTR {
      const int tile = part * (4 / u) + s / u;
      const auto* words = reinterpret_cast<const std::int32_t*>(compact[groups[s]]);
      return CopyElement(hn::LoadU(di, words + tile / 2 * kLine + i * kLanes), r * 2 + tile % 2);
    };
    const auto low = hn::BitCast(dw, hn::InterleaveLower(di, slot(0), slot(1)));
    const auto high = hn::BitCast(dw, hn::InterleaveLower(di, slot(2), slot(3)));
    hn::Store(hn::BitCast(di, hn::InterleaveLower(dw, low, high)), di, line + i * kLanes);
  }
}

// The same where all slots of a line want the same weights: u = 4 and one group.
HWY_INLINE void SpreadUniform(const std::int16_t* compact, int heads, std::int32_t* lines) {
  const DI di;
  const auto* words = reinterpret_cast<const std::int32_t*>(compact);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < kParts; ++i) {
      const VI source = hn::Load(di, words + half * kLine + i * kLanes);
      Unroll<0, 4>([&](auto e) KVFERRY_INLINE_LAMBDA {  // e = 2 * r + tile % 2
        const int line = (half * 2 + e % 2) * 2 + e / 2;
        hn::Store(hn::Broadcast<e>(source), di, lines + line * heads * kLine + i * kLanes);
      });
    }
  }
}

HWY_INLINE std::int32_t* WeightLine(Work& work, int id, int u, int part, int r, int heads) {
  return work.p + ((id * u + part) * 2 + r) * heads * kLine;
}

// Softmax of one block's scores; leaves the weights of every class and head in `work`.
template <int kHeads>
void PrepareWeights(const std::byte* block, const format::ScalarLayout& at, const Classes& classes,
                    int groups, int u, int out_floats, Work& work, BatchState& state) {
  const DF df;
  for (int h = 0; h < kHeads; ++h) {
    OrderScores(h, work);
    const float decay = SoftmaxStep(work.scores[h], kBlockTokens, state.m[h], state.l[h]);
    if (decay != 1.0f) {
      const VF factor = hn::Set(df, decay);
      for (int i = 0; i < out_floats; i += kLanesF) {
        hn::Store(hn::Mul(hn::Load(df, state.out[h] + i), factor), df, state.out[h] + i);
      }
      for (float& sum : state.min_sum[h]) sum *= decay;
      state.decay[h] *= decay;
    }
    HWY_ALIGN std::int16_t compact[kMaxGroups][kBlockTokens];
    float step[kMaxGroups];
    for (int group = 0; group < groups; ++group) {
      const int offset = group * kBlockTokens * 2;
      step[group] = QuantizeWeights(block + at.v_scale + offset, block + at.v_min + offset,
                                    work.scores[h], compact[group], state.min_sum[h][group]);
    }
    for (int id = 0; id < classes.count; ++id) {
      for (int slot = 0; slot < 4; ++slot) {
        work.v_scale[id][h][slot] = work.v_scale[id][h][4 + slot] = step[classes.groups[id][slot]];
      }
      const auto& of = classes.groups[id];
      if (u == 4 && of[0] == of[1] && of[0] == of[2] && of[0] == of[3]) {
        SpreadUniform(compact[of[0]], kHeads, WeightLine(work, id, u, 0, 0, kHeads) + h * kLine);
        continue;
      }
      for (int part = 0; part < u; ++part) {
        for (int r = 0; r < 2; ++r) {
          SpreadWeights(compact, classes.groups[id], u, part, r,
                        WeightLine(work, id, u, part, r, kHeads) + h * kLine);
        }
      }
    }
  }
}

// Fields [kBegin, kEnd) of one column and g over all tiles, into out[field * 4 + slot].
// kSource: the field of the word that is field kBegin (it differs only in the odd group).
template <int kBits, int kHeads, int kBegin, int kEnd, int kSource>
HWY_INLINE void AddColumn(const std::byte* line_begin, std::size_t part_bytes, int parts,
                          std::size_t stream_bytes, const std::int32_t* weights,
                          const float (*scale)[8], int out_offset, BatchState& state) {
  const DI di;
  const D16 d16;
  constexpr int kCount = kEnd - kBegin;
  VI sum[kCount][kHeads];
  for (int k = 0; k < kCount; ++k) {
    for (int h = 0; h < kHeads; ++h) sum[k][h] = hn::Zero(di);
  }
  Line<kBits> line;
  for (int tile_part = 0; tile_part < parts; ++tile_part) {
    for (int i = 0; i < kParts; ++i) {
      line.Load(line_begin + tile_part * part_bytes, stream_bytes, i);
      Unroll<0, 2>([&](auto r) KVFERRY_INLINE_LAMBDA {
        const std::int32_t* w = weights + (tile_part * 2 + r) * kHeads * kLine + i * kLanes;
        Unroll<0, kCount>([&](auto k) KVFERRY_INLINE_LAMBDA {
          const auto codes = line.template Field<kSource + k, r>();
          for (int h = 0; h < kHeads; ++h) {
            sum[k][h] = AddPairs(codes, hn::BitCast(d16, hn::Load(di, w + h * kLine)), sum[k][h]);
          }
        });
      });
    }
  }
  const DF d8;
  const D4F d4;
  for (int h = 0; h < kHeads; ++h) {
    float* out = state.out[h] + out_offset + kBegin * 4;
    const VF step = hn::Load(d8, scale[h]);
    for (int k = 0; k + 1 < kCount; k += 2) {
      const VF value = hn::ConvertTo(d8, SumLanePairs(sum[k][h], sum[k + 1][h]));
      hn::StoreU(hn::MulAdd(value, step, hn::LoadU(d8, out + k * 4)), d8, out + k * 4);
    }
    if constexpr (kCount == 1) {
      const auto value = hn::ConvertTo(d4, SumLanes(di, sum[0][h]));
      hn::Store(hn::MulAdd(value, hn::LowerHalf(d4, step), hn::Load(d4, out)), d4, out);
    }
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

template <int kBits, int kHeads>
void AddCodes(const std::byte* codes, const Shape<kBits>& shape, const Classes& classes, Work& work,
              BatchState& state, Ahead& ahead) {
  constexpr int kFields = Shape<kBits>::kFields;
  constexpr int kStep = FieldsAtOnce<kBits, kHeads>();
  const std::size_t part_bytes = std::size_t{format::kPlaneBytes} * shape.columns;
  const int columns = shape.columns + (shape.odd ? 1 : 0);
  for (int g = 0; g < 8; ++g) {
    ahead.Fetch(work.ahead_bytes);
    for (int column = 0; column < shape.columns; ++column) {
      const int out = (g * columns + column) * kFields * 4;
      Unroll<0, kFields / kStep>([&](auto i) KVFERRY_INLINE_LAMBDA {
        constexpr int kBegin = i * kStep;
        const int id = classes.of[column][kBegin / 4];
        AddColumn<kBits, kHeads, kBegin, kBegin + kStep, kBegin>(
            codes + column * format::kPlaneBytes + g * 64, part_bytes, shape.u,
            shape.stream_bytes(), WeightLine(work, id, shape.u, 0, 0, kHeads), work.v_scale[id],
            out, state);
      });
    }
    if constexpr (Shape<kBits>::kShared) {
      if (shape.odd) {
        const int out = (g * columns + shape.columns) * kFields * 4;
        const int id = classes.of[shape.columns][0];
        const std::byte* line = codes + shape.words * format::kPlaneBytes + g / 2 * 64;
        const std::int32_t* weights = WeightLine(work, id, shape.u, 0, 0, kHeads);
        if (g % 2 == 0) {
          AddColumn<kBits, kHeads, 0, 4, 0>(line, 0, 1, shape.stream_bytes(), weights,
                                            work.v_scale[id], out, state);
        } else {
          AddColumn<kBits, kHeads, 0, 4, 4>(line, 0, 1, shape.stream_bytes(), weights,
                                            work.v_scale[id], out, state);
        }
      }
    }
  }
}

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
                  const float* q, Work& work, Ahead& ahead) {
    PrepareQueries<kHeads>(block, at, spec, q, work);
    ScoreCodes<kBits, kHeads>(block + at.k_codes, Shape<kBits>(spec.head_dim), work, ahead);
  }
};

template <int kBits>
struct VStep {
  template <int kHeads>
  static void Run(const std::byte* block, const format::ScalarLayout& at, const BlockSpec& spec,
                  const Classes& classes, Work& work, BatchState& state, Ahead& ahead) {
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
    Ahead ahead = {blocks.after, blocks.after == nullptr ? 0 : at.bytes};
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

void AttendBlocksSimd(const HeadBlocks& blocks, const BlockSpec& spec, const QueryGroup& group,
                      const SoftmaxState& state) {
  if (spec.kind != BlockKind::kScalar) {
    return AttendPlainBlocksSimd(blocks, spec, group, state);
  }
  HWY_DYNAMIC_DISPATCH(AttendScalarBlocks)(blocks, spec, group, state);
}

}  // namespace kvferry::codec::cpu
#endif
