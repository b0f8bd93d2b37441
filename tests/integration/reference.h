#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"

namespace kvferry::testing {

// Greedy continuation by exact attention in one process, without any cache format: what a served
// answer is held against.
struct Reference {
  std::vector<std::int32_t> ids;
  std::vector<float> margins;  // top-1 minus top-2 logit at each step
};
absl::StatusOr<Reference> GreedyReference(model::Model& model,
                                          const std::vector<std::int32_t>& prompt, int tokens);

// How many leading tokens must be equal: all up to the first step whose margin is below
// `logit_error`.
std::size_t ComparableTokens(const Reference& reference, float logit_error);

}  // namespace kvferry::testing
