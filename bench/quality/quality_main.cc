// kvferry-quality: what each codec does to a model's answers. `kvferry bench quality` starts it.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/quality/passkey.h"
#include "bench/quality/quality.h"
#include "bench/report.h"
#include "cli/output.h"
#include "common/restart.h"
#include "common/status_macros.h"
#include "kvcodec/cpu/cpu_backend.h"

namespace kvferry::bench {
namespace {

struct Flags {
  std::string model, text, codecs, out;
  bool sanity = false;
  int threads = 0, passkeys = 0;
  cli::OutputFormat output = cli::OutputFormat::kTable;
  QualityOptions options{.state = "kvferry-quality.jsonl"};
};

void AddFlags(CLI::App& app, Flags& flags) {
  MeasureOptions& measure = flags.options.measure;
  cli::AddOutputFlag(app, flags.output);
  app.add_option("--model", flags.model, "a .gguf file or a Hugging Face directory")
      ->required()
      ->check(CLI::ExistingPath);
  app.add_option("--text", flags.text, "UTF-8 text to score, taken as it is")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--codecs", flags.codecs,
                 "names with parameters, separated by commas [all registered]");
  app.add_flag("--sanity", flags.sanity,
               "also the rows that the literature has: K4V2 against K2V4, sinks, groups, recent");
  app.add_option("--passages,--chunks", flags.options.passages, "of the text, evenly spread")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--prompt-tokens", measure.prompt_tokens, "of each passage, prefilled exactly")
      ->capture_default_str();
  app.add_option("--decode-tokens", measure.decode_tokens,
                 "that follow and are scored, but for the first")
      ->capture_default_str();
  app.add_option("--greedy-tokens", measure.greedy_tokens,
                 "generated to see how long the answer stays the exact one")
      ->capture_default_str();
  app.add_option("--probe-tokens", measure.probe_tokens,
                 "over which attention outputs are compared")
      ->capture_default_str();
  app.add_option("--batch", flags.options.batch, "passages that step together")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--threads", flags.threads, "0: all cores")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  app.add_option("--passkeys", flags.passkeys,
                 "also hide so many keys at each of 5 depths of a prompt, and ask for them")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  app.add_option("--seed", flags.options.seed, "of the bootstrap and the keys")
      ->capture_default_str();
  app.add_option("--state", flags.options.state,
                 "what is measured goes here, and is not measured again")
      ->capture_default_str();
  app.add_option("--out", flags.out, "also write the JSON to this file");
  app.footer(R"(Examples:
  kvferry bench quality --model SmolLM2-135M-Instruct.Q4_1.gguf --text wiki.test.raw
  kvferry bench quality --model m.gguf --text a.txt --codecs kivi-4,kivi-2:sinks=0,recent=128 --passages 2 --output json

Memory: batch * decode tokens * vocabulary * 4 bytes for the exact model's logits, and the prompts' K and V.
A run that was stopped goes on from its --state file.)");
}

// One line on stderr that is written over; not a terminal: a line whenever something new begins.
class ProgressLine {
 public:
  ~ProgressLine() { End(); }
  void End() {
    if (terminal_ && !what_.empty()) std::cerr << '\n';
    what_.clear();
  }
  void Show(std::string_view what, int done, int all) {
    const bool fresh = what != what_;
    const absl::Time now = absl::Now();
    if (!fresh && (!terminal_ || now - shown_ < absl::Milliseconds(200))) return;
    what_ = what;
    shown_ = now;
    const std::string text =
        absl::StrFormat("%7.1f s  %s %d/%d", absl::ToDoubleSeconds(now - start_), what_, done, all);
    std::cerr << (terminal_ ? "\r\033[K" : "") << text << (terminal_ ? "" : "\n") << std::flush;
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  const absl::Time start_ = absl::Now();
  absl::Time shown_ = absl::InfinitePast();
  std::string what_;
};

std::string FormatInterval(const Interval& interval, int digits) {
  return absl::StrFormat("%.*f [%.*f, %.*f]", digits, interval.value, digits, interval.low, digits,
                         interval.high);
}

void PrintTable(const QualityResult& result) {
  std::vector<std::vector<std::string>> table = {
      {"codec", "bits", "wire B/token", "resident B/token", "perplexity", "ratio [95 %]",
       "KL mean [95 %], nats", "KL p99", "KL max", "top-1 %", "sure %", "greedy", "attention"}};
  for (const Summary& row : result.rows) {
    table.push_back({row.codec.name, absl::StrFormat("%.2f", row.resident_bits),
                     absl::StrFormat("%.0f", row.wire_bytes_per_token),
                     absl::StrFormat("%.0f", row.resident_bytes_per_token),
                     absl::StrFormat("%.3f", row.perplexity.value), FormatInterval(row.ratio, 4),
                     absl::StrFormat("%.2e [%.2e, %.2e]", row.kl.value, row.kl.low, row.kl.high),
                     absl::StrFormat("%.2e", row.kl_p99), absl::StrFormat("%.2e", row.kl_max),
                     absl::StrFormat("%.2f", 100 * row.agreement),
                     absl::StrFormat("%.2f", 100 * row.sure_agreement),
                     absl::StrFormat("%.0f/%d", row.greedy_prefix, row.greedy_tokens),
                     absl::StrFormat("%.4f", row.mean_attention_error())});
  }
  std::cout << "exact model (fp32 K and V): perplexity "
            << FormatInterval(result.exact_perplexity, 3) << " over "
            << result.rows.front().positions << " positions of " << result.rows.front().passages
            << " passages\n\n"
            << cli::FormatTable(table);
}

std::vector<std::string> PasskeyLine(const PasskeyCounts& counts, const PasskeyCounts& asked) {
  std::vector<std::string> line = {counts.codec};
  for (std::size_t depth = 0; depth < counts.found.size(); ++depth) {
    line.push_back(absl::StrCat(counts.found[depth], "/", asked.found[depth]));
  }
  return line;
}

void PrintPasskeys(const PasskeyResult& result) {
  std::vector<std::vector<std::string>> table = {{"keys found at depth"}};
  PasskeyCounts all{.codec = "", .found = {}};
  all.found.fill(result.per_depth);
  for (const int depth : kPasskeyDepths) table[0].push_back(absl::StrCat(depth, " %"));
  table.push_back(PasskeyLine(result.exact, all));
  for (const PasskeyCounts& codec : result.codecs) {
    table.push_back(PasskeyLine(codec, result.exact));
  }
  std::cout << '\n' << cli::FormatTable(table);
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

nlohmann::json MakeReport(const Flags& flags, const QualityResult& result, const Text& text,
                          nlohmann::json report) {
  const MeasureOptions& measure = flags.options.measure;
  report["setup"] = {{"model", flags.model.substr(flags.model.rfind('/') + 1)},
                     {"layers", result.geometry.layers},
                     {"kv_heads", result.geometry.kv_heads},
                     {"head_dim", result.geometry.head_dim},
                     {"text", flags.text.substr(flags.text.rfind('/') + 1)},
                     {"text_crc32c", text.check},
                     {"text_tokens", text.tokens.size()},
                     {"passages", flags.options.passages},
                     {"prompt_tokens", measure.prompt_tokens},
                     {"decode_tokens", measure.decode_tokens},
                     {"greedy_tokens", measure.greedy_tokens},
                     {"probe_tokens", measure.probe_tokens},
                     {"stretch_positions", kStretchPositions},
                     {"seed", flags.options.seed}};
  report["seconds"] = result.seconds;
  report["exact_perplexity"] = {{"value", result.exact_perplexity.value},
                                {"low", result.exact_perplexity.low},
                                {"high", result.exact_perplexity.high}};
  report["codecs"] = nlohmann::json::array();
  for (const Summary& row : result.rows) report["codecs"].push_back(ToJson(row));
  return report;
}

absl::Status Run(Flags& flags, nlohmann::json header) {
  if (flags.codecs.empty()) {
    flags.options.codecs = codec::RegisteredCodecs();
  } else {
    KVF_ASSIGN_OR_RETURN(flags.options.codecs, ParseCodecs(flags.codecs));
  }
  if (flags.sanity) {
    for (codec::Codec& codec : SanityCodecs()) flags.options.codecs.push_back(std::move(codec));
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int threads = flags.threads > 0 ? flags.threads : cores;
  KVF_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(flags.model));
  KVF_ASSIGN_OR_RETURN(const Text text, ReadText(flags.text, *tokenizer));
  KVF_ASSIGN_OR_RETURN(const auto model,
                       model::Model::Load({.path = flags.model, .threads = threads}));
  KVF_ASSIGN_OR_RETURN(const auto backend, codec::CreateCpuBackend({.threads = threads}));
  ProgressLine line;
  const auto progress = [&line](std::string_view what, int done, int all) {
    line.Show(what, done, all);
  };
  KVF_ASSIGN_OR_RETURN(const QualityResult result,
                       RunQuality(flags.options, *model, *backend, text, progress));
  nlohmann::json report = MakeReport(flags, result, text, std::move(header));
  std::optional<PasskeyResult> passkeys;
  if (flags.passkeys > 0) {
    std::vector<codec::Codec> codecs;
    for (const Summary& row : result.rows) codecs.push_back(row.codec);
    KVF_ASSIGN_OR_RETURN(const std::vector<Passkey> keys,
                         MakePasskeys(*tokenizer, text.tokens, flags.options.measure.prompt_tokens,
                                      flags.passkeys, flags.options.seed));
    KVF_ASSIGN_OR_RETURN(passkeys, RunPasskeys({.model = *model,
                                                .backend = *backend,
                                                .tokenizer = *tokenizer,
                                                .codecs = codecs,
                                                .passkeys = keys,
                                                .batch = flags.options.batch},
                                               progress));
    report["passkeys"] = ToJson(*passkeys);
  }
  line.End();
  if (flags.output == cli::OutputFormat::kJson) {
    std::cout << report.dump(2) << '\n';
  } else {
    PrintTable(result);
    if (passkeys.has_value()) PrintPasskeys(*passkeys);
  }
  return WriteReport(report, flags.out);
}

int Main(int argc, char** argv) {
  CLI::App app(
      "What each codec does to a model's answers: exact prefill, the real compressed cache, "
      "teacher-forced decode through the real decode attention, against the exact model.",
      "kvferry bench quality");
  Flags flags;
  AddFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? cli::kExitOk : cli::kExitUsage;
  }
  const absl::Status done = Run(flags, ReportHeader("quality", argc, argv));
  return done.ok() ? cli::kExitOk : cli::Fail(done);
}

}  // namespace
}  // namespace kvferry::bench

// Outside the try, CLI11 throws only for flags that we define wrongly.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  kvferry::KeepOpenMpFromSpinning(argv);
  return kvferry::bench::Main(argc, argv);
}
