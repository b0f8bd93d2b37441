#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/quality/passages.h"
#include "bench/quality/quality.h"
#include "bench/report.h"
#include "calibrate/codebook_training.h"
#include "calibrate/command_parts.h"
#include "calibrate/commands.h"
#include "calibrate/learned_layers.h"
#include "cli/output.h"
#include "cli/progress_line.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "model/kv_gradients.h"
#include "model/tokenizer.h"

namespace kvferry::calibrate {
namespace {

// Of the training's meaning: layers that were learned another way must not mix with these.
constexpr int kStateVersion = 1;

struct Flags {
  std::string model, text, codec, out, state;
  bool resume = false, unweighted = false;
  int sequences = 16, tokens = 2048, threads = 0;
  TrainingOptions training;
  cli::OutputFormat output = cli::OutputFormat::kTable;
};

void AddFlags(CLI::App& command, Flags& flags) {
  cli::AddOutputFlag(command, flags.output);
  command.add_option("--model", flags.model, "a .gguf file or a Hugging Face directory")
      ->required()
      ->check(CLI::ExistingPath);
  command.add_option("--text", flags.text, "UTF-8 text to learn from; do not score on it later")
      ->required()
      ->check(CLI::ExistingFile);
  command.add_option("--codec", flags.codec, "cq-2c8b, cq-4c8b, cq-8c8b, cq-8c10b or cq-2c4b")
      ->required();
  command.add_option("--out", flags.out, "the codebooks")->required();
  command.add_option("--sequences", flags.sequences, "of the text, evenly spread")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--tokens", flags.tokens, "of each sequence")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 20));
  command.add_option("--iterations", flags.training.iterations, "of each k-means")
      ->capture_default_str()
      ->check(CLI::Range(0, 100000));
  command.add_flag("--unweighted", flags.unweighted,
                   "all tokens weigh the same, not by their gradients");
  command.add_option("--seed", flags.training.seed, "of the first centroids")
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "0: all cores")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command.add_option("--state", flags.state, "finished layers go here [OUT.state.jsonl]");
  command.add_flag("--resume", flags.resume, "go on from the state file");
  command.footer(R"(Examples:
  kvferry calibrate codebooks --model m.gguf --text wiki.train.txt --codec cq-4c8b --out m.4c8b.kvcb
  kvferry serve --model m.gguf --codec cq-4c8b:codebooks=m.4c8b.kvcb

Learned: for each group of channels of every head the centroids of a k-means, keys as they are before RoPE, tokens
weighted by the squared gradient of the loss. The tokens that the codec keeps as sinks are left out. What is resumed
computes the gradients again, but no layer that is in the state file; the file goes when OUT is written.
Memory: the model in fp32, and 8 bytes or more for each key and value channel of each token, in all layers.)");
}

absl::StatusOr<codec::Codec> CoupledCodec(const std::string& name) {
  KVF_ASSIGN_OR_RETURN(codec::Codec codec, codec::FindCodec(name));
  if (codec.kind == codec::BlockKind::kCoupled) return codec;
  return absl::InvalidArgumentError(
      absl::StrCat("--codec: '", name, "' has no codebooks, cq-* have"));
}

// Samples of all layers that are not learned yet, by layer.
absl::StatusOr<std::map<int, LayerSamples>> Collect(model::KvGradients& model,
                                                    const codec::CodebookShape& shape,
                                                    std::span<const bench::Passage> sequences,
                                                    int sinks, const LearnedLayers& learned,
                                                    cli::ProgressLine& line) {
  std::map<int, LayerSamples> samples;
  for (int layer = 0; layer < shape.layers; ++layer) {
    if (learned.Get(layer) == nullptr) samples.try_emplace(layer, shape);
  }
  if (samples.empty()) return samples;
  const codec::KeyRotation rotation(model.rope_frequencies());
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    line.Show("gradients of sequences", static_cast<int>(i), static_cast<int>(sequences.size()));
    KVF_RETURN_IF_ERROR(
        model.Run(sequences[i].tokens, [&](int layer, const model::KvGradient& gradient) {
          const auto found = samples.find(layer);
          if (found == samples.end()) return absl::OkStatus();
          return found->second.Add(rotation, gradient, sinks);
        }));
  }
  return samples;
}

absl::Status Learn(model::KvGradients& model, const codec::CodebookShape& shape,
                   std::span<const bench::Passage> sequences, int sinks,
                   const TrainingOptions& options, LearnedLayers& learned) {
  cli::ProgressLine line;
  KVF_ASSIGN_OR_RETURN(auto samples, Collect(model, shape, sequences, sinks, learned, line));
  while (!samples.empty()) {
    line.Show("layers", learned.count(), shape.layers);
    const auto next = samples.begin();
    KVF_ASSIGN_OR_RETURN(LayerCodebooks books, TrainLayer(next->second, next->first, options));
    KVF_RETURN_IF_ERROR(learned.Put(next->first, std::move(books)));
    samples.erase(next);
  }
  return absl::OkStatus();
}

// Relative ones of all layers, and of each.
nlohmann::json ErrorsJson(const LearnedLayers& learned) {
  nlohmann::json json;
  for (const auto& [side, member] :
       {std::pair("k", &LayerCodebooks::k), {"v", &LayerCodebooks::v}}) {
    SideErrors all;
    nlohmann::json weighted, plain;
    for (int layer = 0; layer < learned.layers(); ++layer) {
      const SideErrors& errors = learned.Get(layer)->*member;
      all += errors;
      weighted.push_back(errors.weighted.error());
      plain.push_back(errors.plain.error());
    }
    json[side] = {{"weighted", all.weighted.error()},
                  {"unweighted", all.plain.error()},
                  {"weighted_by_layer", weighted},
                  {"unweighted_by_layer", plain}};
  }
  return json;
}

void Print(const codec::Codebooks& books, const nlohmann::json& record, const std::string& out,
           cli::OutputFormat format) {
  const std::string hash = absl::StrFormat("%016x", books.hash());
  if (format == cli::OutputFormat::kJson) {
    nlohmann::json json = record;
    json["out"] = out;
    json["hash"] = hash;
    std::cout << json.dump(2) << '\n';
    return;
  }
  std::vector<std::vector<std::string>> rows = {{"", "weighted error", "unweighted error"}};
  for (const auto& [side, name] : {std::pair("k", "keys"), {"v", "values"}}) {
    const auto error = [&, side = side](const char* kind) {
      return absl::StrFormat("%.4f", record["errors"][side][kind].get<double>());
    };
    rows.push_back({name, error("weighted"), error("unweighted")});
  }
  std::cout << cli::FormatTable(rows) << '\n'
            << out << ": codebooks " << hash << ", "
            << cli::FormatBytes(static_cast<double>(books.centroids().size_bytes()))
            << " of centroids\n";
}

absl::Status Run(Flags flags, const nlohmann::json& header) {
  if (flags.state.empty()) flags.state = flags.out + ".state.jsonl";
  KVF_RETURN_IF_ERROR(CheckState(flags.state, flags.resume));
  KVF_ASSIGN_OR_RETURN(const codec::Codec codec, CoupledCodec(flags.codec));
  flags.training.threads = ThreadsOf(flags.threads);
  flags.training.weighted = !flags.unweighted;
  KVF_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(flags.model));
  KVF_ASSIGN_OR_RETURN(const bench::Text text,
                       bench::ReadText(std::span(&flags.text, 1), *tokenizer));
  KVF_ASSIGN_OR_RETURN(const std::vector<bench::Passage> sequences,
                       bench::SpreadPassages(text.tokens, flags.tokens, flags.sequences));
  KVF_ASSIGN_OR_RETURN(const auto model,
                       model::KvGradients::Load(flags.model, flags.training.threads));
  const model::ModelConfig& config = model->config();
  // Before hours of work: heads of a size that the codec has.
  KVF_RETURN_IF_ERROR(codec.ForLayer(0, config.head_dim).status());
  const codec::CodebookShape shape = {.layers = config.layers,
                                      .kv_heads = config.kv_heads,
                                      .head_dim = config.head_dim,
                                      .coupling = codec.coupling};

  nlohmann::json record = {{"weights_hash", absl::StrFormat("%016x", model->weights_hash())},
                           {"text_crc32c", text.check},
                           {"codec", codec.name},
                           {"sequences", flags.sequences},
                           {"tokens", flags.tokens},
                           {"sinks", codec.window.sinks},
                           {"iterations", flags.training.iterations},
                           {"weighted", flags.training.weighted},
                           {"seed", flags.training.seed}};
  nlohmann::json run = record;
  run["version"] = kStateVersion;
  KVF_ASSIGN_OR_RETURN(const auto learned, LearnedLayers::Open(flags.state, run, shape));
  KVF_RETURN_IF_ERROR(
      Learn(*model, shape, sequences, codec.window.sinks, flags.training, *learned));

  record["model"] = FileName(flags.model);
  record["text"] = FileName(flags.text);
  for (const char* key : {"command", "date", "commit", "machine"}) record[key] = header[key];
  record["errors"] = ErrorsJson(*learned);
  std::vector<std::uint16_t> centroids;
  for (int layer = 0; layer < shape.layers; ++layer) {
    const std::vector<std::uint16_t>& part = learned->Get(layer)->centroids;
    centroids.insert(centroids.end(), part.begin(), part.end());
  }
  KVF_ASSIGN_OR_RETURN(const auto books, codec::Codebooks::Create(shape, model->rope_frequencies(),
                                                                  centroids, record.dump()));
  KVF_RETURN_IF_ERROR(books->Save(flags.out));
  std::error_code ignored;
  std::filesystem::remove(flags.state, ignored);
  Print(*books, record, flags.out, flags.output);
  return absl::OkStatus();
}

}  // namespace

void AddCodebooks(CLI::App& app, const nlohmann::json& header) {
  CLI::App* command =
      app.add_subcommand("codebooks", "Centroids for coupled channels of a model: codecs cq-*");
  const auto flags = std::make_shared<Flags>();
  AddFlags(*command, *flags);
  command->callback([flags, header] {
    if (const absl::Status done = Run(*flags, header); !done.ok()) {
      throw CLI::RuntimeError(cli::Fail(done));
    }
  });
}

}  // namespace kvferry::calibrate
