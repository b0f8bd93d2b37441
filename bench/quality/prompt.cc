#include "bench/quality/prompt.h"

#include <algorithm>
#include <cstddef>

#include "bench/quality/compare.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

// That the exact model runs at once.
constexpr std::size_t kRunTokens = 8;
// Words that must be the same for a guess: the most that are.
constexpr std::size_t kMostSame = 4;

// At most `count` tokens that followed the last ones of `text` where these stood before; the latest
// such place, of the longest match. None where there is no such place.
std::vector<std::int32_t> Guess(std::span<const std::int32_t> text, std::size_t count) {
  for (std::size_t same = std::min(kMostSame, text.size() - 1); same > 0; --same) {
    const auto last = text.last(same);
    for (std::size_t at = text.size() - same; at-- > 0;) {
      if (!std::equal(last.begin(), last.end(), text.begin() + static_cast<std::ptrdiff_t>(at))) {
        continue;
      }
      const auto after = text.subspan(at + same);
      const auto guess = after.first(std::min(count, after.size()));
      return {guess.begin(), guess.end()};
    }
  }
  return {};
}

}  // namespace

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
                                                           std::span<const std::int32_t> prompt,
                                                           int count) {
  const std::size_t vocabulary = session.logits().size();
  const std::size_t all = prompt.size() + static_cast<std::size_t>(count);
  std::vector<std::int32_t> text(prompt.begin(), prompt.end());  // and what is added
  text.push_back(LikeliestToken(session.logits()));
  std::vector<float> logits(kRunTokens * vocabulary);
  while (text.size() < all) {
    // The last token, which the session has not run yet, and guesses of the ones after it.
    std::vector<std::int32_t> run = Guess(text, std::min(kRunTokens, all - text.size()) - 1);
    run.insert(run.begin(), text.back());
    const auto rows = std::span(logits).first(run.size() * vocabulary);
    KVF_RETURN_IF_ERROR(session.Score(run, rows));
    for (std::size_t i = 0; i < run.size(); ++i) {
      text.push_back(LikeliestToken(rows.subspan(i * vocabulary, vocabulary)));
      if (i + 1 < run.size() && run[i + 1] != text.back()) break;
    }
    KVF_RETURN_IF_ERROR(session.Rewind(static_cast<int>(text.size()) - 1));
  }
  return std::vector<std::int32_t>(text.begin() + static_cast<std::ptrdiff_t>(prompt.size()),
                                   text.end());
}

}  // namespace kvferry::bench
