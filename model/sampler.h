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

// No logit was a number above minus infinity: the model's output is broken, fail the request.
inline constexpr std::int32_t kNoToken = -1;

// Chooses the token at `position` of the sequence. Pure: depends on logits, params, history and
// position only; randomness comes from a counter-based generator keyed by (seed, position), so that
// a re-run elsewhere draws the same token.
//   logits: [vocabulary]. history: prompt and generated tokens so far, for the repetition penalty
//   (ids outside of the vocabulary are ignored).
//   Ties go to the lower id. NaN counts as minus infinity; plus infinity wins over everything.
// In this order, as vLLM does: repetition penalty (a positive logit of a token in history is
// divided by it, another multiplied), temperature, min-p (at least min_p times the most likely),
// top-k, top-p (the fewest most likely tokens that together reach top_p of what is left), draw.
std::int32_t SampleToken(std::span<const float> logits, const SamplingParams& params,
                         std::span<const std::int32_t> history, std::uint32_t position);

}  // namespace kvferry::model
