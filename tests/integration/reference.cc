#include "tests/integration/reference.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <span>

#include "common/status_macros.h"

namespace kvferry::testing {

absl::StatusOr<Reference> GreedyReference(model::Model& model,
                                          const std::vector<std::int32_t>& prompt, int tokens) {
  KVF_ASSIGN_OR_RETURN(
      const std::unique_ptr<model::PrefillSession> session,
      model.StartPrefill(static_cast<int>(prompt.size()) + tokens, codec::Raw16::kFp16));
  const auto ignore_layer = [](int, const codec::KvView&) { return absl::OkStatus(); };
  KVF_RETURN_IF_ERROR(session->Run(prompt, ignore_layer));
  Reference reference;
  for (int step = 0; step < tokens; ++step) {
    const std::span<const float> logits = session->logits();
    const auto best = std::max_element(logits.begin(), logits.end());
    float second = -std::numeric_limits<float>::infinity();
    for (auto it = logits.begin(); it != logits.end(); ++it) {
      if (it != best) second = std::max(second, *it);
    }
    reference.ids.push_back(static_cast<std::int32_t>(best - logits.begin()));
    reference.margins.push_back(*best - second);
    KVF_RETURN_IF_ERROR(session->Run(std::span(&reference.ids.back(), 1), ignore_layer));
  }
  return reference;
}

std::size_t ComparableTokens(const Reference& reference, float logit_error) {
  const auto unsure = std::find_if(reference.margins.begin(), reference.margins.end(),
                                   [&](float m) { return m < logit_error; });
  return static_cast<std::size_t>(unsure - reference.margins.begin());
}

}  // namespace kvferry::testing
