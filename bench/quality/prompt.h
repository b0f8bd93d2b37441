#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"

namespace kvferry::bench {

// K and V of a prompt after exact prefill, as they are handed off.
struct PrefilledPrompt {
  std::unique_ptr<model::PrefillSession> session;  // owns the values
  std::vector<codec::KvView> layers;               // of the prompt's tokens
};

// max_tokens: of the session, which can go on after the prompt.
absl::StatusOr<PrefilledPrompt> PrefillPrompt(model::Model& model,
                                              std::span<const std::int32_t> tokens,
                                              codec::Raw16 type, int max_tokens);

// `count` tokens that the exact model itself adds to its prompt, likeliest first. session: after
// `prompt` and the logits of its last token, with room for what is added; where it stands
// afterwards is not said. Several tokens are run at a time, guessed from what followed the same
// words before (prompt lookup decoding), since a step costs the reading of all weights, of one row
// or of some.
absl::StatusOr<std::vector<std::int32_t>> ContinueGreedily(model::PrefillSession& session,
                                                           std::span<const std::int32_t> prompt,
                                                           int count);

}  // namespace kvferry::bench
