#include "bench/quality/output.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/output.h"

namespace kvferry::bench {
namespace {

std::string FormatInterval(const Interval& interval, int digits) {
  return absl::StrFormat("%.*f [%.*f, %.*f]", digits, interval.value, digits, interval.low, digits,
                         interval.high);
}

std::string FormatKl(const Interval& kl) {
  return absl::StrFormat("%.2e [%.2e, %.2e]", kl.value, kl.low, kl.high);
}

std::vector<std::string> PasskeyLine(const PasskeyCounts& counts, const PasskeyCounts& asked) {
  std::vector<std::string> line = {counts.codec};
  for (std::size_t depth = 0; depth < counts.found.size(); ++depth) {
    line.push_back(absl::StrCat(counts.found[depth], "/", asked.found[depth]));
  }
  return line;
}

}  // namespace

std::string FormatResult(const QualityResult& result) {
  std::vector<std::vector<std::string>> table = {
      {"codec", "bits", "wire B/token", "resident B/token", "perplexity", "ratio [95 %]",
       "KL mean [95 %], nats", "KL p99", "KL max", "top-1 %", "sure %", "top-5 %", "greedy",
       "KL of answers", "attention"}};
  for (const Summary& row : result.rows) {
    table.push_back(
        {row.codec.name, absl::StrFormat("%.2f", row.resident_bits),
         absl::StrFormat("%.0f", row.wire_bytes_per_token),
         absl::StrFormat("%.0f", row.resident_bytes_per_token),
         absl::StrFormat("%.3f", row.perplexity.value), FormatInterval(row.ratio, 4),
         FormatKl(row.kl), absl::StrFormat("%.2e", row.kl_p99), absl::StrFormat("%.2e", row.kl_max),
         absl::StrFormat("%.2f", 100 * row.agreement),
         absl::StrFormat("%.2f", 100 * row.sure_agreement), absl::StrFormat("%.2f", 100 * row.top5),
         row.greedy_tokens == 0 ? "-"
                                : absl::StrFormat("%.0f/%d", row.greedy_prefix, row.greedy_tokens),
         row.greedy_tokens == 0 ? "-" : absl::StrFormat("%.2e", row.trajectory_kl.value),
         row.attention_error.empty() ? "-" : absl::StrFormat("%.4f", row.mean_attention_error())});
  }
  std::string text = absl::StrCat(
      "exact model (fp32 K and V) on ", result.device, ": perplexity ",
      FormatInterval(result.exact_perplexity, 3), " over ", result.rows.front().positions,
      " positions of ", result.rows.front().passages, " passages\n\n", cli::FormatTable(table));
  for (const SkippedCodec& skipped : result.skipped) {
    absl::StrAppend(&text, skipped.codec, ": not on this device: ", skipped.why, "\n");
  }
  return text;
}

std::string FormatPasskeys(const PasskeyResult& result) {
  std::vector<std::vector<std::string>> table = {{"keys found at depth"}};
  PasskeyCounts all{.codec = "", .found = {}};
  all.found.fill(result.per_depth);
  for (const int depth : kPasskeyDepths) table[0].push_back(absl::StrCat(depth, " %"));
  table.push_back(PasskeyLine(result.exact, all));
  for (const PasskeyCounts& codec : result.codecs) {
    table.push_back(PasskeyLine(codec, result.exact));
  }
  return cli::FormatTable(table);
}

nlohmann::json ToJson(const QualityResult& result) {
  nlohmann::json json = {{"device", result.device},
                         {"seconds", result.seconds},
                         {"exact_perplexity", ToJson(result.exact_perplexity)},
                         {"codecs", nlohmann::json::array()},
                         {"not_on_this_device", nlohmann::json::array()}};
  for (const Summary& row : result.rows) json["codecs"].push_back(ToJson(row));
  for (const SkippedCodec& skipped : result.skipped) {
    json["not_on_this_device"].push_back({{"codec", skipped.codec}, {"why", skipped.why}});
  }
  return json;
}

nlohmann::json ToJson(const PasskeyResult& result) {
  nlohmann::json json = {{"depths_percent", kPasskeyDepths},
                         {"per_depth", result.per_depth},
                         {"exact_found", result.exact.found},
                         {"codecs", nlohmann::json::array()}};
  for (const PasskeyCounts& codec : result.codecs) {
    json["codecs"].push_back({{"codec", codec.codec}, {"found", codec.found}});
  }
  return json;
}

}  // namespace kvferry::bench
