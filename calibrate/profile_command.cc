#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "bench/quality/host_device.h"
#include "bench/quality/passages.h"
#include "bench/quality/quality.h"
#include "bench/report.h"
#include "calibrate/command_parts.h"
#include "calibrate/commands.h"
#include "calibrate/layer_errors.h"
#include "calibrate/passage_kl.h"
#include "calibrate/profile_record.h"
#include "calibrate/profile_search.h"
#include "calibrate/recorded_meter.h"
#include "cli/output.h"
#include "cli/progress_line.h"
#include "common/status_macros.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "model/tokenizer.h"

namespace kvferry::calibrate {
namespace {

// Of the measurements' meaning: a change of what is measured must not mix with an old state.
constexpr int kStateVersion = 1;

struct Flags {
  std::string model, text, out, name, state, codec = "kivi-4-g64", pairs;
  bool resume = false;
  int passages = 4, threads = 0;
  PassageOptions measure;
  SearchInput search;
  cli::OutputFormat output = cli::OutputFormat::kTable;
};

void AddFlags(CLI::App& command, Flags& flags) {
  cli::AddOutputFlag(command, flags.output);
  command.add_option("--model", flags.model, "a .gguf file or a Hugging Face directory")
      ->required()
      ->check(CLI::ExistingPath);
  command.add_option("--text", flags.text, "UTF-8 text to calibrate on; do not score on it later")
      ->required()
      ->check(CLI::ExistingFile);
  command
      .add_option("--budget-bits", flags.search.budget_bits,
                  "per value of a block, scales and mins counted, as `kvferry codecs` has them")
      ->required()
      ->check(CLI::Range(1.0, 16.0));
  command.add_option("--out", flags.out, "the profile; its codec is kvtuner:OUT")->required();
  command.add_option("--name", flags.name, "in the profile [that of the file]");
  command.add_option("--codec", flags.codec, "whose groups and window the profile has: kivi-*")
      ->capture_default_str();
  command.add_option("--pairs", flags.pairs,
                     "K/V bits that a layer can have, separated by commas [2, 4, 8 for each]");
  command.add_option("--passages", flags.passages, "of the text, evenly spread")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--prompt-tokens", flags.measure.prompt_tokens,
                  "of each passage, prefilled exactly")
      ->capture_default_str();
  command
      .add_option("--decode-tokens", flags.measure.decode_tokens,
                  "that follow and are scored, but for the first")
      ->capture_default_str();
  command.add_option("--batch", flags.measure.batch, "sequences that step together")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  command
      .add_option("--repair-rounds", flags.search.repair_rounds,
                  "of measuring what is near the knapsack's optimum")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  command.add_option("--population", flags.search.nsga2.population, "of NSGA-II, a multiple of 4")
      ->capture_default_str();
  command.add_option("--generations", flags.search.nsga2.generations, "of NSGA-II")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  command.add_option("--seed", flags.search.nsga2.seed, "of NSGA-II")->capture_default_str();
  command.add_option("--threads", flags.threads, "0: all cores")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command.add_option("--state", flags.state, "what is measured goes here [OUT.state.jsonl]");
  command.add_flag("--resume", flags.resume,
                   "go on from the state file, which may be of another budget or seed");
  command.footer(R"(Examples:
  kvferry calibrate profile --model m.gguf --text wiki.valid.txt --budget-bits 3.5 --out c3.json
  kvferry calibrate profile --model m.gguf --text wiki.valid.txt --budget-bits 4.5 --out c4.json --state c3.json.state.jsonl --resume
  kvferry serve --model m.gguf --codec kvtuner:c3.json

Measured: each layer alone with each pair of bits, then choices for all layers. A GPU worker attends on the pairs
that `kvferry-decode` names when it refuses one: give those as --pairs. Memory: 16-bit caches of --batch sequences.)");
}

absl::StatusOr<std::vector<Pair>> ParsePairs(const std::string& list) {
  if (list.empty()) return AllPairs();
  const std::vector<Pair> known = AllPairs();
  std::vector<Pair> pairs;
  for (const absl::string_view part : absl::StrSplit(list, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> sides =
        absl::StrSplit(part, absl::MaxSplits('/', 1));
    Pair pair;
    if (!absl::SimpleAtoi(sides.first, &pair.k_bits) ||
        !absl::SimpleAtoi(sides.second, &pair.v_bits) ||
        std::find(known.begin(), known.end(), pair) == known.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--pairs: '", part, "' is not K/V with bits of 2, 4, 8"));
    }
    if (std::find(pairs.begin(), pairs.end(), pair) == pairs.end()) pairs.push_back(pair);
  }
  return pairs;
}

absl::StatusOr<codec::Codec> BaseCodec(const std::string& name) {
  KVF_ASSIGN_OR_RETURN(codec::Codec codec, codec::FindCodec(name));
  if (codec.kind == codec::BlockKind::kScalar && codec.layers.empty()) return codec;
  return absl::InvalidArgumentError(
      absl::StrCat("--codec: '", name, "' is no kivi codec without layers of its own"));
}

// The output errors of `pairs` among those of all.
std::vector<std::vector<double>> OutputErrors(const std::vector<std::vector<LayerErrors>>& errors,
                                              std::span<const Pair> pairs) {
  const std::vector<Pair> all = AllPairs();
  std::vector<std::vector<double>> output;
  for (const std::vector<LayerErrors>& layer : errors) {
    std::vector<double>& of_layer = output.emplace_back();
    for (const Pair& pair : pairs) {
      const auto at = std::find(all.begin(), all.end(), pair) - all.begin();
      of_layer.push_back(layer[static_cast<std::size_t>(at)].output);
    }
  }
  return output;
}

absl::Status Run(Flags flags, nlohmann::json header) {
  if (flags.state.empty()) flags.state = flags.out + ".state.jsonl";
  if (flags.name.empty()) flags.name = std::filesystem::path(flags.out).stem().string();
  KVF_RETURN_IF_ERROR(CheckState(flags.state, flags.resume));
  KVF_ASSIGN_OR_RETURN(flags.search.base, BaseCodec(flags.codec));
  KVF_ASSIGN_OR_RETURN(flags.search.pairs, ParsePairs(flags.pairs));
  const int threads = ThreadsOf(flags.threads);
  KVF_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(flags.model));
  KVF_ASSIGN_OR_RETURN(const bench::Text text,
                       bench::ReadText(std::span(&flags.text, 1), *tokenizer));
  KVF_ASSIGN_OR_RETURN(auto loaded, model::Model::Load({.path = flags.model, .threads = threads}));
  KVF_ASSIGN_OR_RETURN(auto backend, codec::CreateCpuBackend({.threads = threads}));
  KVF_ASSIGN_OR_RETURN(const auto device,
                       bench::HostDevice::Create(std::move(loaded), std::move(backend)));
  model::Model& model = device->model();
  const model::ModelConfig& config = model.config();
  flags.search.geometry = {config.layers, config.kv_heads, config.head_dim};

  cli::ProgressLine line;
  std::string stage;
  const Progress progress = [&](std::string_view what, int done, int all) {
    line.Show(stage.empty() ? std::string(what) : absl::StrCat(stage, ", ", std::string(what)),
              done, all);
  };
  KVF_ASSIGN_OR_RETURN(
      const std::vector<bench::Passage> passages,
      bench::SpreadPassages(text.tokens, flags.measure.prompt_tokens + flags.measure.decode_tokens,
                            flags.passages));
  KVF_ASSIGN_OR_RETURN(const std::vector<ExactPassage> exact,
                       RunExactly(model, passages, flags.measure, progress));
  const nlohmann::json run = {{"version", kStateVersion},
                              {"weights", absl::StrFormat("%016x", model.weights_hash())},
                              {"text", text.check},
                              {"passages", flags.passages},
                              {"prompt_tokens", flags.measure.prompt_tokens},
                              {"decode_tokens", flags.measure.decode_tokens}};
  std::vector<codec::Codec> codecs;
  for (const Pair& pair : AllPairs()) {
    KVF_ASSIGN_OR_RETURN(codecs.emplace_back(),
                         CodecOf(flags.search.base, std::vector<Pair>(config.layers, pair)));
  }
  KVF_ASSIGN_OR_RETURN(const std::vector<std::vector<LayerErrors>> errors,
                       MeasureErrors(*device, exact, codecs, flags.measure, progress));
  flags.search.output_errors = OutputErrors(errors, flags.search.pairs);

  PassageKl passage_kl(*device, exact, flags.measure);
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<RecordedMeter> meter,
                       RecordedMeter::Open(flags.state, run, passage_kl, progress));
  KVF_ASSIGN_OR_RETURN(
      const SearchResult result,
      SearchProfile(flags.search, *meter, [&](std::string_view what) { stage = what; }));
  line.End();

  nlohmann::json setup = {{"command", header["command"]},
                          {"date", header["date"]},
                          {"commit", header["commit"]},
                          {"machine", header["machine"]},
                          {"model", FileName(flags.model)},
                          {"weights_hash", run["weights"]},
                          {"text", FileName(flags.text)},
                          {"text_crc32c", text.check},
                          {"passages", flags.passages},
                          {"prompt_tokens", flags.measure.prompt_tokens},
                          {"decode_tokens", flags.measure.decode_tokens}};
  const nlohmann::json profile =
      ProfileJson(flags.name, flags.search, result, errors, std::move(setup));
  if (flags.output == cli::OutputFormat::kJson) {
    std::cout << profile.dump(2) << '\n';
  } else {
    std::cout << ProfileText(flags.name, result);
  }
  return bench::WriteReport(profile, flags.out);
}

}  // namespace

void AddProfile(CLI::App& app, nlohmann::json header) {
  CLI::App* command = app.add_subcommand(
      "profile", "Bits of keys and values for each layer, for a budget: codecs kvtuner:*");
  const auto flags = std::make_shared<Flags>();
  AddFlags(*command, *flags);
  command->callback([flags, header] {
    if (const absl::Status done = Run(*flags, header); !done.ok()) {
      throw CLI::RuntimeError(cli::Fail(done));
    }
  });
}

}  // namespace kvferry::calibrate
