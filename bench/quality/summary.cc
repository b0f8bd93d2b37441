#include "bench/quality/summary.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace kvferry::bench {
namespace {

double BitsPerValue(double bytes_per_token, const codec::CacheGeometry& geometry) {
  return 8 * bytes_per_token / (2.0 * geometry.layers * geometry.kv_heads * geometry.head_dim);
}

// By position, against the same position of the exact cache.
std::vector<std::vector<double>> NllDifferences(const SummaryInput& input) {
  std::vector<std::vector<double>> differences;
  for (std::size_t i = 0; i < input.records.size(); ++i) {
    std::vector<double>& one = differences.emplace_back(input.records[i].nll);
    for (std::size_t at = 0; at < one.size(); ++at) one[at] -= input.exact_records[i].nll[at];
  }
  return differences;
}

void SummarizeLikelihoods(const SummaryInput& input, Summary& summary) {
  std::vector<std::vector<double>> nll, kl;
  std::vector<double> all_kl;
  for (const Record& record : input.records) {
    nll.push_back(record.nll);
    kl.push_back(record.kl);
    all_kl.insert(all_kl.end(), record.kl.begin(), record.kl.end());
  }
  summary.passages = input.records.size();
  summary.positions = all_kl.size();
  summary.perplexity = Exp(BootstrapMean(nll, kStretchPositions, input.seed));
  summary.ratio = Exp(BootstrapMean(NllDifferences(input), kStretchPositions, input.seed));
  summary.kl = BootstrapMean(kl, kStretchPositions, input.seed);
  summary.kl_p99 = Quantile(all_kl, 0.99);
  summary.kl_max = *std::max_element(all_kl.begin(), all_kl.end());
}

void SummarizeTokens(const SummaryInput& input, Summary& summary) {
  double agree = 0, sure = 0, sure_agree = 0, top5 = 0;
  std::vector<double> prefixes;
  std::vector<std::vector<double>> trajectories;
  for (const Record& record : input.records) {
    agree += record.agree;
    sure += record.sure;
    sure_agree += record.sure_agree;
    top5 += record.top5;
    prefixes.push_back(record.greedy_prefix);
    if (!record.trajectory_kl.empty()) trajectories.push_back(record.trajectory_kl);
  }
  summary.agreement = agree / static_cast<double>(summary.positions);
  summary.sure_agreement = sure == 0 ? 1 : sure_agree / sure;
  summary.top5 = top5 / 5 / static_cast<double>(summary.positions);
  if (!trajectories.empty()) {
    summary.trajectory_kl = BootstrapMean(trajectories, kStretchPositions, input.seed);
  }
  summary.greedy_prefix = Quantile(prefixes, 0.5);
  summary.greedy_tokens = input.records.front().greedy_tokens;
}

void SummarizeBytes(const SummaryInput& input, Summary& summary) {
  const Record& any = input.records.front();  // all have the same number of tokens
  summary.wire_bytes_per_token = static_cast<double>(any.wire_bytes) / input.prompt_tokens;
  summary.resident_bytes_per_token = static_cast<double>(any.resident_bytes) / any.resident_tokens;
  summary.block_bits = input.codec.BitsPerValue(input.geometry.head_dim);
  summary.wire_bits = BitsPerValue(summary.wire_bytes_per_token, input.geometry);
  summary.resident_bits = BitsPerValue(summary.resident_bytes_per_token, input.geometry);
}

}  // namespace

double Summary::mean_attention_error() const {
  if (attention_error.empty()) return 0;
  const double sum = std::accumulate(attention_error.begin(), attention_error.end(), 0.0);
  return sum / static_cast<double>(attention_error.size());
}

absl::StatusOr<Summary> Summarize(const SummaryInput& input) {
  Summary summary;
  summary.codec = input.codec;
  SummarizeLikelihoods(input, summary);
  SummarizeTokens(input, summary);
  SummarizeBytes(input, summary);
  summary.attention_error.resize(input.records.front().attention_error.size());
  for (const Record& record : input.records) {
    summary.seconds += record.seconds;
    for (std::size_t layer = 0; layer < summary.attention_error.size(); ++layer) {
      summary.attention_error[layer] +=
          record.attention_error[layer] / static_cast<double>(input.records.size());
    }
  }
  if (input.codec.kind != codec::BlockKind::kRaw16 && summary.kl.value == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "codec ", input.codec.name, ": the divergence from the exact model is exactly 0 ",
        "at all ", summary.positions, " positions, so nothing compressed was read"));
  }
  return summary;
}

nlohmann::json ToJson(const Interval& interval) {
  return {{"value", interval.value}, {"low", interval.low}, {"high", interval.high}};
}

nlohmann::json ToJson(const Summary& summary) {
  return {{"codec", summary.codec.name},
          {"hash", HashText(summary.codec)},
          {"lossy", summary.codec.kind != codec::BlockKind::kRaw16},
          {"passages", summary.passages},
          {"positions", summary.positions},
          {"perplexity", ToJson(summary.perplexity)},
          {"perplexity_ratio", ToJson(summary.ratio)},
          {"kl", ToJson(summary.kl)},
          {"kl_p99", summary.kl_p99},
          {"kl_max", summary.kl_max},
          {"top1_agreement", summary.agreement},
          {"top1_agreement_where_sure", summary.sure_agreement},
          {"top5_overlap", summary.top5},
          {"trajectory_kl", ToJson(summary.trajectory_kl)},
          {"greedy_prefix_median", summary.greedy_prefix},
          {"greedy_tokens", summary.greedy_tokens},
          {"attention_error", summary.attention_error},
          {"attention_error_mean", summary.mean_attention_error()},
          {"wire_bytes_per_token", summary.wire_bytes_per_token},
          {"resident_bytes_per_token", summary.resident_bytes_per_token},
          {"block_bits_per_value", summary.block_bits},
          {"wire_bits_per_value", summary.wire_bits},
          {"resident_bits_per_value", summary.resident_bits},
          {"seconds", summary.seconds}};
}

}  // namespace kvferry::bench
