#include "bench/quality/quality.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "bench/quality/passages.h"
#include "bench/quality/state_file.h"
#include "common/status_macros.h"
#include "common/string_view.h"
#include "kvcodec/open_codec.h"

namespace kvferry::bench {
namespace {

constexpr char kBaseline[] = "fp16";
// Of the records' meaning: a change of what is measured must not mix with old records.
constexpr int kStateVersion = 2;

// All that a record depends on beside passage and codec.
nlohmann::json DescribeRun(const QualityOptions& options, const Device& device, const Text& text) {
  return {{"version", kStateVersion},
          {"device", device.name()},
          {"weights", absl::StrFormat("%016x", device.model().weights_hash())},
          {"text", text.check},
          {"prompt_tokens", options.measure.prompt_tokens},
          {"decode_tokens", options.measure.decode_tokens},
          {"greedy_tokens", options.measure.greedy_tokens},
          {"probe_tokens", options.measure.probe_tokens}};
}

bool HasAll(const StateFile& state, std::span<const Passage> group, const std::string& codec,
            const std::string& hash) {
  return std::all_of(group.begin(), group.end(), [&](const Passage& passage) {
    return state.Find(passage.number, codec, hash) != nullptr;
  });
}

// One group of passages: the exact model once, then each codec that is not in the state yet.
absl::Status MeasureGroup(const Measure& measure, std::span<const codec::Codec> codecs,
                          std::span<const Passage> group, StateFile& state) {
  std::vector<codec::Codec> missing;
  for (const codec::Codec& codec : codecs) {
    if (!HasAll(state, group, codec.name, HashText(codec))) missing.push_back(codec);
  }
  if (missing.empty() && HasAll(state, group, kExactModel, "")) return absl::OkStatus();
  std::vector<ExactPassage> exact;
  for (const Passage& passage : group) {
    KVF_ASSIGN_OR_RETURN(exact.emplace_back(), measure.RunExact(passage));
    KVF_RETURN_IF_ERROR(state.Append(exact.back().record));
  }
  ProbeTraces traces;
  for (const codec::Codec& codec : missing) {
    KVF_ASSIGN_OR_RETURN(const std::vector<Record> records,
                         measure.RunCodec(codec, group, exact, traces));
    for (const Record& record : records) KVF_RETURN_IF_ERROR(state.Append(record));
  }
  return absl::OkStatus();
}

std::vector<Record> RecordsOf(const StateFile& state, std::span<const Passage> passages,
                              const std::string& codec, const std::string& hash) {
  std::vector<Record> records;
  for (const Passage& passage : passages) {
    records.push_back(*state.Find(passage.number, codec, hash));
  }
  return records;
}

// Takes out of `codecs` what the device does not have.
absl::StatusOr<std::vector<SkippedCodec>> SkipUnsupported(const Device& device,
                                                          std::vector<codec::Codec>& codecs) {
  std::vector<SkippedCodec> skipped;
  std::vector<codec::Codec> kept;
  for (codec::Codec& codec : codecs) {
    const absl::Status status = Supports(device, codec);
    if (status.code() == absl::StatusCode::kUnimplemented) {
      skipped.push_back({codec.name, std::string(status.message())});
      continue;
    }
    KVF_RETURN_IF_ERROR(status);
    kept.push_back(std::move(codec));
  }
  codecs = std::move(kept);
  return skipped;
}

// fp16 first: what every ratio is to.
absl::StatusOr<std::vector<codec::Codec>> WithBaseline(const std::vector<codec::Codec>& codecs) {
  KVF_ASSIGN_OR_RETURN(codec::Codec baseline, codec::FindCodec(kBaseline));
  std::vector<codec::Codec> all = {std::move(baseline)};
  for (const codec::Codec& codec : codecs) {
    const bool known = std::any_of(all.begin(), all.end(), [&](const codec::Codec& other) {
      return other.name == codec.name;
    });
    if (!known) all.push_back(codec);
  }
  return all;
}

absl::StatusOr<QualityResult> SumUp(const StateFile& state, std::span<const codec::Codec> codecs,
                                    std::span<const Passage> passages,
                                    const QualityOptions& options, QualityResult result) {
  std::vector<std::vector<double>> exact_nll;
  for (const Record& record : RecordsOf(state, passages, kExactModel, "")) {
    exact_nll.push_back(record.nll);
    result.seconds += record.seconds;
  }
  result.exact_perplexity = Exp(BootstrapMean(exact_nll, kStretchPositions, options.seed));
  const std::vector<Record> baseline =
      RecordsOf(state, passages, codecs.front().name, HashText(codecs.front()));
  for (const codec::Codec& codec : codecs) {
    const std::vector<Record> records = RecordsOf(state, passages, codec.name, HashText(codec));
    KVF_ASSIGN_OR_RETURN(result.rows.emplace_back(),
                         Summarize({.codec = codec,
                                    .records = records,
                                    .exact_records = baseline,
                                    .geometry = result.geometry,
                                    .prompt_tokens = options.measure.prompt_tokens,
                                    .seed = options.seed}));
    result.seconds += result.rows.back().seconds;
  }
  return result;
}

// What a run is about, when the state has all of its part.
struct Measured {
  std::vector<codec::Codec> codecs;  // of all parts
  std::vector<SkippedCodec> skipped;
  std::vector<Passage> passages;
  std::unique_ptr<StateFile> state;
};

absl::StatusOr<Measured> MeasurePart(const QualityOptions& options, const Part& part,
                                     Device& device, const Text& text, Measure::Progress progress) {
  if (options.batch < 1) {
    return absl::InvalidArgumentError(absl::StrCat("batch is ", options.batch, ", must be >= 1"));
  }
  Measured run;
  KVF_ASSIGN_OR_RETURN(run.codecs, WithBaseline(options.codecs));
  KVF_ASSIGN_OR_RETURN(run.skipped, SkipUnsupported(device, run.codecs));
  KVF_ASSIGN_OR_RETURN(const Measure measure,
                       Measure::Create(device, options.measure, std::move(progress)));
  KVF_ASSIGN_OR_RETURN(run.passages,
                       SpreadPassages(text.tokens, measure.passage_tokens(), options.passages));
  KVF_ASSIGN_OR_RETURN(run.state,
                       StateFile::Open(options.state, DescribeRun(options, device, text)));
  std::vector<codec::Codec> mine;
  for (std::size_t i = 0; i < run.codecs.size(); ++i) {
    if (part.Has(i)) mine.push_back(run.codecs[i]);
  }
  for (std::size_t at = 0; at < run.passages.size(); at += options.batch) {
    const std::size_t count = std::min<std::size_t>(options.batch, run.passages.size() - at);
    KVF_RETURN_IF_ERROR(
        MeasureGroup(measure, mine, std::span(run.passages).subspan(at, count), *run.state));
  }
  return run;
}

}  // namespace

absl::StatusOr<Part> ParsePart(std::string_view text) {
  const std::pair<absl::string_view, absl::string_view> sides =
      absl::StrSplit(ToAbsl(text), absl::MaxSplits('/', 1));
  Part part;
  if (!absl::SimpleAtoi(sides.first, &part.index) || !absl::SimpleAtoi(sides.second, &part.count) ||
      part.index < 0 || part.index >= part.count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "part is \"", ToAbsl(text), "\"; a number and how many there are, as 0/5 .. 4/5"));
  }
  return part;
}

absl::StatusOr<std::vector<codec::Codec>> ParseCodecs(std::string_view list) {
  std::vector<std::string> names;
  for (const absl::string_view part : absl::StrSplit(ToAbsl(list), ',', absl::SkipEmpty())) {
    const bool setting =
        part.find('=') != absl::string_view::npos && part.find(':') == absl::string_view::npos;
    if (setting && !names.empty()) {
      absl::StrAppend(&names.back(), ",", part);
    } else {
      names.emplace_back(part);
    }
  }
  if (names.empty()) return absl::InvalidArgumentError("codecs: the list is empty");
  std::vector<codec::Codec> codecs;
  for (const std::string& name : names) {
    KVF_ASSIGN_OR_RETURN(codecs.emplace_back(), codec::OpenCodec(name));
  }
  return codecs;
}

std::vector<codec::Codec> SanityCodecs() {
  constexpr char kRows[] =
      "kivi-4,kivi-2,kivi-k4v2,kivi-2:v_bits=4,"                            // keys, values
      "kivi-2-g64:k_bits=4,kivi-2-g64:v_bits=4,"                            // the same, on a GPU
      "kivi-2:sinks=0,kivi-2:sinks=1,kivi-2:sinks=16,"                      // sinks; default 4
      "kivi-4:k_group=64,v_group=64,kivi-2:k_group=64,v_group=64,"          // groups; default 32
      "kivi-4:recent=0,kivi-4:recent=64,kivi-2:recent=0,kivi-2:recent=64";  // default 128
  return ParseCodecs(kRows).value();
}

absl::StatusOr<QualityResult> RunQuality(const QualityOptions& options, Device& device,
                                         const Text& text, Measure::Progress progress) {
  KVF_ASSIGN_OR_RETURN(Measured run,
                       MeasurePart(options, Part(), device, text, std::move(progress)));
  return SumUp(
      *run.state, run.codecs, run.passages, options,
      {.device = device.name(), .geometry = device.geometry(), .skipped = std::move(run.skipped)});
}

absl::Status MeasureQualityPart(const QualityOptions& options, const Part& part, Device& device,
                                const Text& text, Measure::Progress progress) {
  return MeasurePart(options, part, device, text, std::move(progress)).status();
}

}  // namespace kvferry::bench
