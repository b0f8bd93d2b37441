#include "decode_node/admission.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/sequence_cache.h"

namespace kvferry::decode {
namespace {

constexpr absl::Duration kShortestRetry = absl::Milliseconds(50);
constexpr absl::Duration kLongestRetry = absl::Seconds(10);
constexpr absl::Duration kCreditRetry = absl::Milliseconds(100);

Admission Refuse(absl::Status status, absl::Duration retry_after = absl::ZeroDuration()) {
  return {.status = std::move(status), .retry_after = retry_after};
}

absl::Status CheckDemand(const AdmissionLimits& limits, const Demand& demand) {
  if (demand.prompt_tokens == 0) {
    return absl::InvalidArgumentError("prompt_tokens: 0; at least 1 is needed");
  }
  if (demand.max_new_tokens == 0) {
    return absl::InvalidArgumentError("max_new_tokens: 0; at least 1 is needed");
  }
  if (demand.prompt_tokens > limits.max_context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_tokens: ", demand.prompt_tokens,
                                                   "; the context holds ",
                                                   limits.max_context_tokens));
  }
  const std::uint32_t room = limits.max_context_tokens - demand.prompt_tokens;
  if (demand.max_new_tokens > room) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_new_tokens: ", demand.max_new_tokens, "; after ", demand.prompt_tokens,
        " prompt tokens the context of ", limits.max_context_tokens, " holds ", room, " more"));
  }
  return absl::OkStatus();
}

// When `rows` rows and a place will be free, if every running sequence goes on to its end.
absl::Duration EstimateWait(const Usage& usage, std::uint32_t rows) {
  std::vector<HeldSequence> held(usage.held.begin(), usage.held.end());
  std::sort(held.begin(), held.end(), [](const HeldSequence& a, const HeldSequence& b) {
    return a.remaining_tokens < b.remaining_tokens;
  });
  std::uint64_t free = usage.free_rows;
  for (const HeldSequence& sequence : held) {
    free += sequence.rows;
    if (free < rows) continue;
    return std::clamp(sequence.remaining_tokens * usage.step_time, kShortestRetry, kLongestRetry);
  }
  return kShortestRetry;  // quarantined pages only: they come back as soon as the sender answers
}

}  // namespace

Admission Admit(const AdmissionLimits& limits, const Demand& demand, const Usage& usage) {
  if (absl::Status status = CheckDemand(limits, demand); !status.ok()) {
    return Refuse(std::move(status));
  }
  const std::uint32_t rows =
      cache::RowsNeeded(static_cast<int>(demand.prompt_tokens),
                        static_cast<int>(demand.max_new_tokens), limits.window);
  if (rows > limits.rows) {
    return Refuse(absl::InvalidArgumentError(
        absl::StrCat("prompt_tokens + max_new_tokens: ", demand.prompt_tokens, " + ",
                     demand.max_new_tokens, " tokens need ", rows,
                     " rows of 64; the whole pool has ", limits.rows, " (raise pool_bytes)")));
  }
  if (usage.held.size() >= limits.max_sequences) {
    return Refuse(absl::ResourceExhaustedError(
                      absl::StrCat("all ", limits.max_sequences, " sequences are taken")),
                  EstimateWait(usage, rows));
  }
  if (rows > usage.free_rows) {
    return Refuse(absl::ResourceExhaustedError(absl::StrCat(rows, " rows of 64 tokens wanted, ",
                                                            usage.free_rows, " of ", limits.rows,
                                                            " are free")),
                  EstimateWait(usage, rows));
  }
  if (usage.free_credits < kMinCredits) {
    return Refuse(absl::ResourceExhaustedError("all landing slots are promised to transfers"),
                  kCreditRetry);
  }
  // A quarter of what is left: those who come later get some, too.
  const std::uint32_t credits = std::clamp(usage.free_credits / 4, kMinCredits,
                                           std::max(kMinCredits, limits.credits_per_transfer));
  return {.rows = rows, .credits = credits};
}

}  // namespace kvferry::decode
