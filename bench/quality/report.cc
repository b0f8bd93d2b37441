#include "bench/quality/report.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/quality/simulation.h"
#include "bench/quality/state_file.h"
#include "bench/quality/summary.h"
#include "cli/output.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

// Of what a simulated record means.
constexpr int kStateVersion = 1;

std::string Key(const SimulatedCodec& codec) { return absl::StrCat(codec.group, ": ", codec.name); }

std::string HashText(const SimulatedCodec& codec) {
  const std::string text = codec.Description();
  return absl::StrFormat("%08x", Crc32c(std::as_bytes(std::span(text))));
}

nlohmann::json DescribeRun(const ReportOptions& options, const Device& device, const Text& text) {
  return {{"simulation", kStateVersion},
          {"device", device.name()},
          {"weights", absl::StrFormat("%016x", device.model().weights_hash())},
          {"text", text.check},
          {"prompt_tokens", options.measure.prompt_tokens},
          {"decode_tokens", options.measure.decode_tokens}};
}

absl::Status RunPassage(std::span<const SimulatedCodec> codecs, const Passage& passage,
                        const ExactPassage& exact, Simulation& simulation, StateFile& state,
                        const Measure::Progress& progress) {
  KVF_RETURN_IF_ERROR(state.Append(exact.record));
  int done = 0;
  for (const SimulatedCodec& codec : codecs) {
    progress(absl::StrCat("passage ", passage.number, ", report"), done++,
             static_cast<int>(codecs.size()));
    if (state.Find(passage.number, Key(codec), HashText(codec)) != nullptr) continue;
    KVF_ASSIGN_OR_RETURN(Record record, simulation.Run(codec, passage, exact));
    record.codec = Key(codec);
    record.codec_hash = HashText(codec);
    KVF_RETURN_IF_ERROR(state.Append(record));
  }
  return absl::OkStatus();
}

// What a report is measured with.
struct ReportRun {
  static absl::StatusOr<ReportRun> Prepare(const ReportOptions& options, Device& device,
                                           const codec::Backend& backend, const Text& text,
                                           const Measure::Progress& progress) {
    const codec::CacheGeometry geometry = device.geometry();
    ReportRun run;
    KVF_ASSIGN_OR_RETURN(run.codecs,
                         ReportRows(options.groups, geometry.layers, geometry.kv_heads));
    MeasureOptions sizes = options.measure;
    sizes.greedy_tokens = sizes.probe_tokens = 0;
    KVF_ASSIGN_OR_RETURN(Measure measure, Measure::Create(device, sizes, progress));
    run.measure = std::make_unique<Measure>(std::move(measure));
    KVF_ASSIGN_OR_RETURN(
        run.passages, SpreadPassages(text.tokens, run.measure->passage_tokens(), options.passages));
    KVF_ASSIGN_OR_RETURN(run.state,
                         StateFile::Open(options.state, DescribeRun(options, device, text)));
    KVF_ASSIGN_OR_RETURN(run.simulation, Simulation::Create(device, backend));
    return run;
  }

  std::vector<SimulatedCodec> codecs;  // all rows
  std::vector<Passage> passages;
  std::unique_ptr<Measure> measure;
  std::unique_ptr<StateFile> state;
  std::unique_ptr<Simulation> simulation;
};

absl::StatusOr<ReportRow> SumUp(const SimulatedCodec& codec, std::span<const Passage> passages,
                                const StateFile& state, const ReportOptions& options,
                                const codec::CacheGeometry& geometry) {
  ReportRow row{.codec = codec, .passages = passages.size()};
  KVF_ASSIGN_OR_RETURN(
      row.bits,
      ResidentBits(codec, options.measure.prompt_tokens + options.measure.decode_tokens - 1,
                   geometry));
  std::vector<std::vector<double>> kl, differences;
  double agree = 0;
  for (const Passage& passage : passages) {
    const Record& record = *state.Find(passage.number, Key(codec), HashText(codec));
    const Record& exact = *state.Find(passage.number, kExactModel, "");
    kl.push_back(record.kl);
    std::vector<double>& difference = differences.emplace_back(record.nll);
    for (std::size_t i = 0; i < difference.size(); ++i) difference[i] -= exact.nll[i];
    agree += record.agree;
    row.positions += record.kl.size();
    row.seconds += record.seconds;
  }
  row.kl = BootstrapMean(kl, kStretchPositions, options.seed);
  row.ratio = Exp(BootstrapMean(differences, kStretchPositions, options.seed));
  row.agreement = agree / static_cast<double>(row.positions);
  return row;
}

nlohmann::json ToJson(const Correlation& correlation) {
  return {{"mean", correlation.mean}, {"gain_bits", correlation.gain_bits}};
}

}  // namespace

absl::StatusOr<ReportResult> RunReport(const ReportOptions& options, Device& device,
                                       const codec::Backend& backend, const Text& text,
                                       const Measure::Progress& progress) {
  KVF_ASSIGN_OR_RETURN(const ReportRun run,
                       ReportRun::Prepare(options, device, backend, text, progress));
  KVF_ASSIGN_OR_RETURN(const auto correlations, Correlations::Create(device));
  for (const Passage& passage : run.passages) {
    KVF_ASSIGN_OR_RETURN(const ExactPassage exact, run.measure->RunExact(passage));
    KVF_RETURN_IF_ERROR(device.WaitForPrefill());
    KVF_RETURN_IF_ERROR(correlations->Add(exact));
    KVF_RETURN_IF_ERROR(
        RunPassage(run.codecs, passage, exact, *run.simulation, *run.state, progress));
  }
  ReportResult result{.passages = options.passages};
  KVF_ASSIGN_OR_RETURN(result.correlations, correlations->Layers());
  for (const SimulatedCodec& codec : run.codecs) {
    KVF_ASSIGN_OR_RETURN(result.rows.emplace_back(),
                         SumUp(codec, run.passages, *run.state, options, device.geometry()));
  }
  return result;
}

absl::Status MeasureReportPart(const ReportOptions& options, const Part& part, Device& device,
                               const codec::Backend& backend, const Text& text,
                               const Measure::Progress& progress) {
  KVF_ASSIGN_OR_RETURN(const ReportRun run,
                       ReportRun::Prepare(options, device, backend, text, progress));
  std::vector<SimulatedCodec> mine;
  for (std::size_t i = 0; i < run.codecs.size(); ++i) {
    if (part.Has(i)) mine.push_back(run.codecs[i]);
  }
  for (const Passage& passage : run.passages) {
    const bool all = std::all_of(mine.begin(), mine.end(), [&](const SimulatedCodec& codec) {
      return run.state->Find(passage.number, Key(codec), HashText(codec)) != nullptr;
    });
    if (all) continue;
    KVF_ASSIGN_OR_RETURN(const ExactPassage exact, run.measure->RunExact(passage));
    KVF_RETURN_IF_ERROR(device.WaitForPrefill());
    KVF_RETURN_IF_ERROR(RunPassage(mine, passage, exact, *run.simulation, *run.state, progress));
  }
  return absl::OkStatus();
}

std::string FormatReport(const ReportResult& result) {
  std::vector<std::vector<std::string>> table = {
      {"group", "row", "bits", "KL mean [95 %], nats", "perplexity ratio", "top-1 %"}};
  for (const ReportRow& row : result.rows) {
    table.push_back({row.codec.group, row.codec.name, absl::StrFormat("%.2f", row.bits),
                     absl::StrFormat("%.2e [%.2e, %.2e]", row.kl.value, row.kl.low, row.kl.high),
                     absl::StrFormat("%.4f", row.ratio.value),
                     absl::StrFormat("%.2f", 100 * row.agreement)});
  }
  return cli::FormatTable(table);
}

nlohmann::json ToJson(const ReportResult& result) {
  nlohmann::json json = {{"passages", result.passages},
                         {"rows", nlohmann::json::array()},
                         {"correlations", nlohmann::json::array()}};
  for (const ReportRow& row : result.rows) {
    json["rows"].push_back({{"group", row.codec.group},
                            {"name", row.codec.name},
                            {"layer", row.codec.only_layer},
                            {"head", row.codec.only_head},
                            {"bits", row.bits},
                            {"positions", row.positions},
                            {"kl", ToJson(row.kl)},
                            {"perplexity_ratio", ToJson(row.ratio)},
                            {"top1_agreement", row.agreement},
                            {"seconds", row.seconds}});
  }
  for (const LayerCorrelations& layer : result.correlations) {
    json["correlations"].push_back({{"keys_before_rope", ToJson(layer.keys_before_rope)},
                                    {"keys", ToJson(layer.keys)},
                                    {"values", ToJson(layer.values)}});
  }
  return json;
}

}  // namespace kvferry::bench
