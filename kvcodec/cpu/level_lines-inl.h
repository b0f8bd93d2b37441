// Per-target include guard, as Highway wants it for headers that are compiled once per target.
#if defined(KVFERRY_KVCODEC_CPU_LEVEL_LINES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVFERRY_KVCODEC_CPU_LEVEL_LINES_INL_H_
#undef KVFERRY_KVCODEC_CPU_LEVEL_LINES_INL_H_
#else
#define KVFERRY_KVCODEC_CPU_LEVEL_LINES_INL_H_
#endif

#include "kvcodec/cpu/code_lines-inl.h"
#include "kvcodec/lut.h"

#if KVFERRY_SIMD_TARGET

HWY_BEFORE_NAMESPACE();
namespace kvferry::codec::cpu::HWY_NAMESPACE {

// From the lines of a lut block to levels.
using DL = hn::CappedTag<float, 16>;  // as many lanes as DI
using VL = hn::VFromD<DL>;
constexpr int kMaxLines = 128;  // of one head: head_dim 96 at 3 bits has the most

// The levels of a table, found by the low bits of a lane. Entries repeat, so that bits above a code
// need no mask.
class Levels {
 public:
  explicit Levels(const Lut& lut) {
    HWY_ALIGN float entries[16];
    for (int i = 0; i < 16; ++i) entries[i] = lut.levels[i % lut.count()];
    low_ = hn::Load(DL(), entries);
    high_ = hn::Load(DL(), entries + 16 - kLanes);  // where a vector has 8 lanes: the upper half
  }

  template <int kBits>
  HWY_INLINE VL Find(VI codes) const {
#if HWY_MAX_BYTES >= 64
    return VL{_mm512_permutexvar_ps(codes.raw, low_.raw)};
#else
    const VL low = {_mm256_permutevar8x32_ps(low_.raw, codes.raw)};
    if constexpr (kBits < 4) return low;
    const VL high = {_mm256_permutevar8x32_ps(high_.raw, codes.raw)};
    const VI top = hn::ShiftLeft<28>(codes);  // bit 3 as the sign
    return VL{_mm256_blendv_ps(low.raw, high.raw, _mm256_castsi256_ps(top.raw))};
#endif
  }

 private:
  VL low_, high_;
};

// Lanes whose low bits are the code of pair k, byte r and half h.
template <int kBits, int k, int r, int h>
HWY_INLINE VI CodesOf(const Line<kBits>& line) {
  const DI di;
  if constexpr (kBits != 3) {
    return Right<16 * h + 8 * r + kBits * k>(line.x[0]);
  } else if constexpr (k == 7 && r == 1) {
    const VI bit0 = hn::And(Right<16 * h + 15>(line.x[0]), hn::Set(di, 1));
    const VI bit1 = hn::And(Right<16 * h + 14>(line.x[1]), hn::Set(di, 2));
    const VI bit2 = hn::And(Right<16 * h + 13>(line.x[2]), hn::Set(di, 4));
    return hn::Or(hn::Or(bit0, bit1), bit2);
  } else {
    constexpr int kWord = k < 6 ? k / 2 : k == 6 ? r : 2;
    constexpr int kShift = k < 6 ? 9 * r + 3 * (k % 2) : 6;
    return Right<16 * h + kShift>(line.x[kWord]);
  }
}

struct LutWork {
  HWY_ALIGN float q[kMaxPairs * 2 * kBatch * kLine];  // [pair][h][head][line]
  HWY_ALIGN float raw[kBatch][kBlockTokens];          // [g][r][tile], before scaling
  HWY_ALIGN float scores[kBatch][kBlockTokens];       // in the order of V scales, then p * scale
  HWY_ALIGN float p[4 * 2 * 2 * kBatch * kLine];      // [tile part][r][h][head][line]
  HWY_ALIGN float out[kBatch][kMaxLines * kLine];     // [g][column][field][line]
  float shift[kBatch] = {};                           // q times the zeros of keys
  int ahead_bytes = 0;                                // of one BlockAhead::Fetch
};

}  // namespace kvferry::codec::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVFERRY_SIMD_TARGET

#endif  // per-target guard
