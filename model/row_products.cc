#include "model/row_products.h"

#include <bit>

#include "hwy/cache_control.h"

// Scalable vectors cannot stand in arrays; their targets fall back to NEON or scalar code.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/row_products.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvferry::model::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::ScalableTag<std::uint32_t>;

float Bf16ToFloat(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Weight rows of a tile: with four activation rows their accumulators fill the registers.
constexpr int kTileOutputs = HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3 ? 3 : 4;  // of 16 or 32

// kOutputs weight rows from `output` on times kRows activation rows from `row` on: a tile of
// accumulators in registers. The last rows send for the next weights, which would otherwise be
// waited for when this tile is done.
template <int kOutputs, int kRows>
HWY_INLINE void Fp32Tile(const RowProducts& work, std::int64_t output, int row) {
  const F32 d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const std::int64_t inputs = work.inputs;
  const float* w = work.fp32 + output * inputs;
  const float* x = work.x + row * inputs;
  const bool is_last = row + kRows == work.rows;
  hn::Vec<F32> sum[kOutputs][kRows];
  for (auto& sums : sum) {
    for (auto& one : sums) one = hn::Zero(d);
  }
  int i = 0;
  for (; i + lanes <= inputs; i += lanes) {
    if (is_last) {
      for (int o = 0; o < kOutputs; ++o) hwy::Prefetch(w + (kOutputs + o) * inputs + i);
    }
    hn::Vec<F32> weights[kOutputs];
    for (int o = 0; o < kOutputs; ++o) weights[o] = hn::LoadU(d, w + o * inputs + i);
    for (int r = 0; r < kRows; ++r) {
      const auto values = hn::LoadU(d, x + r * inputs + i);
      for (int o = 0; o < kOutputs; ++o) sum[o][r] = hn::MulAdd(weights[o], values, sum[o][r]);
    }
  }
  for (int o = 0; o < kOutputs; ++o) {
    for (int r = 0; r < kRows; ++r) {
      float total = hn::GetLane(hn::SumOfLanes(d, sum[o][r]));
      for (int j = i; j < inputs; ++j) total += w[o * inputs + j] * x[r * inputs + j];
      work.out[(row + r) * work.out_stride + output + o] = total;
    }
  }
}

// The same for bf16 weights: one load brings pairs (even input low, odd input high) as 32-bit
// words.
template <int kOutputs, int kRows>
HWY_INLINE void Bf16Tile(const RowProducts& work, std::int64_t output, int row) {
  const F32 d;
  const U32 du;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const std::int64_t inputs = work.inputs;
  const int pairs = work.inputs / 2;
  const std::uint16_t* w = work.bf16 + output * inputs;
  const float* x = work.x + row * inputs;
  const bool is_last = row + kRows == work.rows;
  const auto odd_mask = hn::Set(du, 0xffff0000u);
  hn::Vec<F32> sum[kOutputs][kRows];
  for (auto& sums : sum) {
    for (auto& one : sums) one = hn::Zero(d);
  }
  int i = 0;
  for (; i + lanes <= pairs; i += lanes) {
    if (is_last) {
      for (int o = 0; o < kOutputs; ++o) hwy::Prefetch(w + (kOutputs + o) * inputs + 2 * i);
    }
    hn::Vec<F32> even[kOutputs], odd[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      const auto words =
          hn::LoadU(du, reinterpret_cast<const std::uint32_t*>(w + o * inputs + 2 * i));
      even[o] = hn::BitCast(d, hn::ShiftLeft<16>(words));
      odd[o] = hn::BitCast(d, hn::And(words, odd_mask));
    }
    for (int r = 0; r < kRows; ++r) {
      const auto even_x = hn::LoadU(d, x + r * inputs + i);
      const auto odd_x = hn::LoadU(d, x + r * inputs + pairs + i);
      for (int o = 0; o < kOutputs; ++o) {
        sum[o][r] = hn::MulAdd(even[o], even_x, sum[o][r]);
        sum[o][r] = hn::MulAdd(odd[o], odd_x, sum[o][r]);
      }
    }
  }
  for (int o = 0; o < kOutputs; ++o) {
    for (int r = 0; r < kRows; ++r) {
      float total = hn::GetLane(hn::SumOfLanes(d, sum[o][r]));
      for (int j = i; j < pairs; ++j) {
        total += Bf16ToFloat(w[o * inputs + 2 * j]) * x[r * inputs + j];
        total += Bf16ToFloat(w[o * inputs + 2 * j + 1]) * x[r * inputs + pairs + j];
      }
      work.out[(row + r) * work.out_stride + output + o] = total;
    }
  }
}

template <int kOutputs, int kRows>
HWY_INLINE void Tile(const RowProducts& work, std::int64_t output, int row) {
  if (work.bf16 != nullptr) {
    Bf16Tile<kOutputs, kRows>(work, output, row);
  } else {
    Fp32Tile<kOutputs, kRows>(work, output, row);
  }
}

template <int kOutputs>
HWY_INLINE void AllRows(const RowProducts& work, std::int64_t output) {
  int row = 0;
  for (; row + 4 <= work.rows; row += 4) Tile<kOutputs, 4>(work, output, row);
  for (; row + 2 <= work.rows; row += 2) Tile<kOutputs, 2>(work, output, row);
  for (; row < work.rows; ++row) Tile<kOutputs, 1>(work, output, row);
}

void Compute(const RowProducts& work, std::int64_t begin, std::int64_t end) {
  std::int64_t output = begin;
  for (; output + kTileOutputs <= end; output += kTileOutputs) {
    AllRows<kTileOutputs>(work, output);
  }
  for (; output < end; ++output) AllRows<1>(work, output);
}

}  // namespace kvferry::model::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvferry::model {

HWY_EXPORT(Compute);

void ComputeRowProducts(const RowProducts& work, std::int64_t begin, std::int64_t end) {
  HWY_DYNAMIC_DISPATCH(Compute)(work, begin, end);
}

void SplitRow(const float* row, int inputs, float* out) {
  const int pairs = inputs / 2;
  for (int i = 0; i < pairs; ++i) {
    out[i] = row[2 * i];
    out[pairs + i] = row[2 * i + 1];
  }
}

}  // namespace kvferry::model
#endif  // HWY_ONCE
