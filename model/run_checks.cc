#include "model/run_checks.h"

#include "absl/strings/str_cat.h"

namespace kvferry::model {

absl::Status CheckToken(const ModelConfig& config, std::size_t index, std::int32_t token,
                        std::int32_t position) {
  if (token < 0 || token >= config.vocabulary) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", token, " at index ", index, " is outside the vocabulary of ", config.vocabulary));
  }
  if (position < 0 || position >= config.max_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("position ", position, " at index ", index,
                                                   " is outside the context of ",
                                                   config.max_context_tokens));
  }
  return absl::OkStatus();
}

absl::Status CheckPromptTokens(const ModelConfig& config, int max_tokens) {
  if (max_tokens >= 1 && max_tokens <= config.max_context_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "a prompt of ", max_tokens, " tokens: this model takes 1 to ", config.max_context_tokens));
}

absl::Status CheckPromptChunk(std::size_t count, std::int64_t done, int max_tokens) {
  if (count == 0) return absl::InvalidArgumentError("no tokens to run");
  if (count <= static_cast<std::size_t>(max_tokens - done)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(count, " tokens after ", done, ", the session was made for ", max_tokens));
}

absl::Status CheckRewind(int tokens, std::int64_t done) {
  if (tokens >= 0 && tokens <= done) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("rewind to ", tokens, " tokens of ", done));
}

absl::Status CheckLogitsRoom(const ModelConfig& config, std::size_t tokens, std::size_t logits) {
  const std::size_t wanted = tokens * static_cast<std::size_t>(config.vocabulary);
  if (logits == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(tokens, " tokens with room for ", logits, " logits, ", wanted, " wanted"));
}

absl::Status CheckDecodeStep(const ModelConfig& config, std::size_t tokens, std::size_t positions,
                             std::size_t logits) {
  const std::size_t wanted = tokens * static_cast<std::size_t>(config.vocabulary);
  if (tokens != 0 && positions == tokens && logits == wanted) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("decode step of ", tokens, " tokens with ",
                                                 positions, " positions and room for ", logits,
                                                 " logits, ", wanted, " wanted"));
}

}  // namespace kvferry::model
