#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"

namespace kvferry::model {

struct SamplingParams {
  float temperature = 0;  // 0 is greedy
  int top_k = 0;          // 0 is off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  std::uint64_t seed = 0;

  // kInvalidArgument names the field, its value and the allowed range.
  absl::Status Validate() const;
};

// Chooses the token at `position` of the sequence. Pure: depends on logits, params, history and
// position only; randomness comes from a counter-based generator keyed by (seed, position), so that
// a re-run elsewhere draws the same token.
//   logits: [vocabulary]. history: prompt and generated tokens so far, for the repetition penalty.
//   Ties go to the lower id.
std::int32_t SampleToken(std::span<const float> logits, const SamplingParams& params,
                         std::span<const std::int32_t> history, std::uint32_t position);

}  // namespace kvferry::model
