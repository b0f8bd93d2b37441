#pragma once

#include <cstdint>

#include "kernels/attention_args.h"
#include "kernels/device/softmax_state.cuh"

namespace kvferry::kernels {

// What a Codes of decode attention has unless it says otherwise: those of codes that become their
// values, which meet q and p as these are.
template <int kHeadDimension>
struct PlainCodes {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr std::uint32_t kOnes = 0x3c003c00u;  // two halves

  // q for codes: what a channel is multiplied with (by the pair of channels, of four) and which
  // place it takes among the eight of a lane; and what scores are short of.
  static constexpr float q_weight(int) { return 1.0f; }
  static constexpr int q_place(int channel) { return channel; }
  static constexpr float kScoreUnit = 1.0f;

  // Rows of SoftmaxState::totals, by g: the sum of p, and what is added to all channels of a group
  // of 32; -1: nothing is.
  static constexpr int kOnesRow = 0;
  static __device__ __forceinline__ int min_row(int) { return -1; }

  // Columns of the products that a row of q has, all with the same in them: 1 or 2.
  static constexpr int kColumnsOfRow = 1;

  // p * (V's scale of a token) may leave the range of a half: the piece is then done again with
  // kLargeScalesRange.
  static constexpr bool kScalesMeetP = true;

  // What `attend` adds to, begun by (SoftmaxRange, lane); and its sums as those of values.
  using Running = SoftmaxState<kHeadDim / 16>;
  static __device__ __forceinline__ void to_values(Running& running,
                                                   SoftmaxState<kHeadDim / 16>& state) {
    state = running;
  }

  // Of shared memory, what codes are looked up in. Filled before the kernel ahead in the stream has
  // ended, so from what was there long before.
  static constexpr int kTableBytes = 0;
  template <int kThreads>
  static __device__ __forceinline__ void fill_tables(char*, const AttentionArgs&,
                                                     const AttentionPiece&) {}
};

// The place of a channel of q for codes that are used as pairs (c, c + 2) and (c + 1, c + 3).
constexpr int place_two_apart(int channel) {
  return channel / 4 * 4 + channel % 2 * 2 + channel % 4 / 2;
}

}  // namespace kvferry::kernels
