#include "bench/quality/prompt.h"

#include "bench/quality/compare.h"
#include "common/status_macros.h"

namespace kvferry::bench {

absl::StatusOr<PrefilledPrompt> PrefillPrompt(model::Model& model,
                                              std::span<const std::int32_t> tokens,
                                              codec::Raw16 type, int max_tokens) {
  PrefilledPrompt prompt;
  KVF_ASSIGN_OR_RETURN(prompt.session, model.StartPrefill(max_tokens, type));
  KVF_RETURN_IF_ERROR(
      prompt.session->Run(tokens, [&prompt](int /*layer*/, const codec::KvView& kv) {
        prompt.layers.push_back(kv);
        return absl::OkStatus();
      }));
  return prompt;
}

absl::StatusOr<std::vector<std::int32_t>> ContinueGreedily(model::PrefillSession& session,
                                                           int tokens) {
  std::vector<std::int32_t> added = {LikeliestToken(session.logits())};
  while (static_cast<int>(added.size()) < tokens) {
    const std::int32_t last = added.back();
    KVF_RETURN_IF_ERROR(session.Run(std::span(&last, 1),
                                    [](int, const codec::KvView&) { return absl::OkStatus(); }));
    added.push_back(LikeliestToken(session.logits()));
  }
  return added;
}

}  // namespace kvferry::bench
