#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/sampler_random.h"

namespace kvferry::model {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Candidate {
  float weight;  // probability over that of the most likely token, in [0, 1]
  std::int32_t id;
};

bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

bool LowerId(const Candidate& a, const Candidate& b) { return a.id < b.id; }

// Written so that NaN is refused, too.
absl::Status CheckRange(const char* field, double value, bool allowed, const char* range) {
  if (allowed) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sampling.", field, " is ", value, "; allowed is ", range));
}

std::vector<float> PenalizedLogits(std::span<const float> logits, float penalty,
                                   std::span<const std::int32_t> history) {
  std::vector<float> result(logits.begin(), logits.end());
  if (penalty == 1.0f) return result;
  std::vector<bool> seen(logits.size());
  for (const std::int32_t id : history) {
    const auto at = static_cast<std::size_t>(id);
    if (id < 0 || at >= logits.size() || seen[at]) continue;
    seen[at] = true;
    result[at] = result[at] < 0 ? result[at] * penalty : result[at] / penalty;
  }
  return result;
}

// kNoToken: nothing above minus infinity.
std::int32_t MostLikely(std::span<const float> logits) {
  std::int32_t best = kNoToken;
  float best_logit = kMinusInfinity;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] > best_logit) {  // false for NaN
      best_logit = logits[id];
      best = static_cast<std::int32_t>(id);
    }
  }
  return best;
}

// Softmax at the temperature, up to a factor, without what min_p or zero weight rules out. By id.
std::vector<Candidate> Candidates(std::span<const float> logits, float max, float temperature,
                                  float min_p) {
  std::vector<Candidate> candidates;
  // Cheaper than an exponential for each token: nothing below this can reach min_p, or be told
  // from zero.
  const float margin = min_p > 0 ? std::log(min_p) - 0.01f : -104.0f;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const float scaled = (logits[id] - max) / temperature;
    if (!(scaled >= margin)) continue;
    const float weight = std::exp(scaled);
    if (weight > 0 && weight >= min_p) {
      candidates.push_back({weight, static_cast<std::int32_t>(id)});
    }
  }
  return candidates;
}

void KeepTopK(std::size_t k, std::vector<Candidate>& candidates) {
  if (k == 0 || k >= candidates.size()) return;
  const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(candidates.begin(), end, candidates.end(), MoreLikely);
  candidates.erase(end, candidates.end());
  std::sort(candidates.begin(), candidates.end(), LowerId);
}

double TotalWeight(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

// Positive floats are ordered as their bits are: exponent and four bits of the fraction.
constexpr std::size_t kBins = 1u << 12;
std::size_t BinOf(float weight) { return std::bit_cast<std::uint32_t>(weight) >> 19; }

// Sums by bin say which bin the limit falls into; only that one is sorted.
void KeepTopP(float top_p, std::vector<Candidate>& candidates) {
  if (top_p >= 1.0f) return;
  std::array<double, kBins> bin_weight{};
  for (const Candidate& candidate : candidates) {
    bin_weight[BinOf(candidate.weight)] += candidate.weight;
  }
  const double wanted = top_p * TotalWeight(candidates);
  double sum = 0;
  std::size_t last_bin = BinOf(1.0f);
  while (last_bin > 0 && sum + bin_weight[last_bin] < wanted) sum += bin_weight[last_bin--];

  std::vector<Candidate> kept, boundary;
  for (const Candidate& candidate : candidates) {
    const std::size_t bin = BinOf(candidate.weight);
    if (bin > last_bin) kept.push_back(candidate);
    if (bin == last_bin) boundary.push_back(candidate);
  }
  std::sort(boundary.begin(), boundary.end(), MoreLikely);
  for (const Candidate& candidate : boundary) {
    if (sum >= wanted) break;
    kept.push_back(candidate);
    sum += candidate.weight;
  }
  std::sort(kept.begin(), kept.end(), LowerId);
  candidates = std::move(kept);
}

// candidates is not empty: the most likely token passes every filter.
std::int32_t Draw(std::span<const Candidate> candidates, double uniform) {
  double left = uniform * TotalWeight(candidates);
  for (const Candidate& candidate : candidates) {
    left -= candidate.weight;
    if (left < 0) return candidate.id;
  }
  return candidates.back().id;
}

}  // namespace

absl::Status SamplingParams::Validate() const {
  KVF_RETURN_IF_ERROR(CheckRange("temperature", temperature, temperature >= 0 && temperature <= 100,
                                 "0 (greedy) to 100"));
  KVF_RETURN_IF_ERROR(CheckRange("top_k", top_k, top_k >= 0, "0 (off) or more"));
  KVF_RETURN_IF_ERROR(CheckRange("top_p", top_p, top_p > 0 && top_p <= 1, "above 0, up to 1"));
  KVF_RETURN_IF_ERROR(CheckRange("min_p", min_p, min_p >= 0 && min_p < 1, "0 to below 1"));
  return CheckRange("repetition_penalty", repetition_penalty,
                    repetition_penalty > 0 && repetition_penalty <= 10, "above 0, up to 10");
}

std::int32_t SampleToken(std::span<const float> logits, const SamplingParams& params,
                         std::span<const std::int32_t> history, std::uint32_t position) {
  const std::vector<float> penalized = PenalizedLogits(logits, params.repetition_penalty, history);
  const std::int32_t best = MostLikely(penalized);
  if (best == kNoToken || params.temperature == 0) return best;
  const float max = penalized[static_cast<std::size_t>(best)];
  if (std::isinf(max)) return best;
  std::vector<Candidate> candidates = Candidates(penalized, max, params.temperature, params.min_p);
  KeepTopK(static_cast<std::size_t>(params.top_k), candidates);
  KeepTopP(params.top_p, candidates);
  return Draw(candidates, UniformAt(params.seed, position));
}

}  // namespace kvferry::model
