#pragma once

#include <cstdint>

#include "kernels/device/attention_variant.cuh"
#include "kernels/device/block_site.cuh"
#include "kernels/device/plain_codes.cuh"
#include "kernels/device/pointer_ring.cuh"
#include "kernels/device/raw_tokens.cuh"
#include "kvcodec/format.h"

namespace kvferry::kernels {

// Attention on blocks of kind kRaw16, whose values are of the type of q: the baseline codecs fp16
// and bf16. Read into registers like the window, by many warps: a ring of blocks of 32 KiB would
// leave room for few.
template <int kHeadDimension>
struct RawCodes : PlainCodes<kHeadDimension> {
  using PlainCodes<kHeadDimension>::kHeadDim, PlainCodes<kHeadDimension>::kOnesRow;
  using typename PlainCodes<kHeadDimension>::Running;
  static constexpr codec::format::Raw16Layout kLayout = codec::format::Raw16Block(kHeadDim);
  static constexpr int kBytes = kLayout.bytes;
  static constexpr int kMaxStages = 1;
  template <int kStages>
  using Ring = PointerRing;
  static constexpr int kSlotBytes = 0;  // of shared memory, for a block

  static __device__ __forceinline__ void attend(const char* block, const char*, const char* q_plain,
                                                const char*, bool bf16, const float (&unit)[2],
                                                const float (&)[2], int lane, const BlockSite&,
                                                Running& state) {
#pragma unroll 1
    for (int tile = 0; tile < codec::format::kTiles; ++tile) {
      attend_raw_tile<kHeadDim, 1>(
          [&](int row, bool v) {
            return reinterpret_cast<const std::uint16_t*>(block + (v ? kLayout.v : kLayout.k)) +
                   (tile * kTileTokens + row) * kHeadDim;
          },
          [](int, int) { return false; }, bf16, unit, q_plain, kOnesRow, lane, state);
    }
  }
};

template <int kHeadDim>
AttentionVariant raw_variant() {
  return make_variant<RawCodes<kHeadDim>>({.kind = codec::BlockKind::kRaw16, .head_dim = kHeadDim});
}

}  // namespace kvferry::kernels
