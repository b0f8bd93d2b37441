#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "model/model_config.h"

// What every implementation of Model refuses before it computes: all kInvalidArgument.
namespace kvferry::model {

// Token and position number `index` of a call: inside the vocabulary and the context.
absl::Status CheckToken(const ModelConfig& config, std::size_t index, std::int32_t token,
                        std::int32_t position);
// A session for a prompt of at most `max_tokens` tokens.
absl::Status CheckPromptTokens(const ModelConfig& config, int max_tokens);
// `count` tokens after `done` in a session for `max_tokens`.
absl::Status CheckPromptChunk(std::size_t count, std::int64_t done, int max_tokens);
// A way back from `done` tokens to `tokens`.
absl::Status CheckRewind(int tokens, std::int64_t done);
// Room for the logits of `tokens` tokens.
absl::Status CheckLogitsRoom(const ModelConfig& config, std::size_t tokens, std::size_t logits);
// A decode step with so many tokens and positions, and room for so many logits.
absl::Status CheckDecodeStep(const ModelConfig& config, std::size_t tokens, std::size_t positions,
                             std::size_t logits);

}  // namespace kvferry::model
