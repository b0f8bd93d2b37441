#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/open_codec.h"
#include "kvcodec/plan.h"
#include "model/config_reader.h"

namespace kvferry::cli {
namespace {

struct CodecsFlags {
  OutputFormat output = OutputFormat::kTable;
  std::string model;
  int layers = 32, kv_heads = 8, head_dim = 128;
  int tokens = 8192;
  std::vector<std::string> names;
};

struct Row {
  codec::Codec codec;
  double bits_per_value = 0;
  double bytes_per_token = 0;  // of compressed tokens, all layers and heads
  double handoff_bytes = 0;    // of `tokens` tokens, sinks and window included
  double raw16_bytes = 0;
  std::vector<std::string> backends;
  bool fits = true;  // the model; a profile may not, and then has bits_per_value alone
};

absl::StatusOr<codec::CacheGeometry> Geometry(const CodecsFlags& flags) {
  if (flags.model.empty())
    return codec::CacheGeometry{flags.layers, flags.kv_heads, flags.head_dim};
  KVF_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ReadModelConfig(flags.model));
  return codec::CacheGeometry{config.layers, config.kv_heads, config.head_dim};
}

absl::StatusOr<Row> Describe(const codec::Codec& codec, const codec::CacheGeometry& geometry,
                             int tokens, const codec::Backend& backend) {
  Row row{.codec = codec, .bits_per_value = codec.BitsPerValue(geometry.head_dim)};
  row.fits = codec.FitsModel(geometry).ok();
  if (!row.fits) return row;
  bool supported = true;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(layer, geometry.head_dim));
    row.bytes_per_token +=
        static_cast<double>(codec::PageBytes(spec, geometry.kv_heads)) / codec::kBlockTokens;
    const absl::Status status = backend.Supports(spec);
    // What lacks codebooks alone has them where it serves.
    supported = supported && (status.ok() || codec.NeedsCodebooks());
  }
  KVF_ASSIGN_OR_RETURN(const std::size_t handoff, codec::HandoffBytes(tokens, codec, geometry));
  row.handoff_bytes = static_cast<double>(handoff);
  row.raw16_bytes = static_cast<double>(codec::Raw16HandoffBytes(tokens, geometry));
  if (supported) row.backends.push_back("cpu");
  return row;
}

absl::StatusOr<std::vector<Row>> DescribeAll(const CodecsFlags& flags,
                                             const codec::CacheGeometry& geometry) {
  std::vector<codec::Codec> codecs;
  for (const std::string& name : flags.names) {
    KVF_ASSIGN_OR_RETURN(codec::Codec codec, codec::OpenCodec(name));
    codecs.push_back(std::move(codec));
  }
  if (codecs.empty()) codecs = codec::RegisteredCodecs();
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<codec::Backend> backend, codec::CreateCpuBackend({}));
  std::vector<Row> rows;
  for (const codec::Codec& codec : codecs) {
    KVF_ASSIGN_OR_RETURN(Row row, Describe(codec, geometry, flags.tokens, *backend));
    rows.push_back(std::move(row));
  }
  return rows;
}

// Of the models that a profile or codebooks are for.
int LayersOf(const codec::Codec& codec) {
  return codec.codebooks == nullptr ? codec.model_layers : codec.codebooks->shape().layers;
}

std::string Remark(const codec::Codec& codec) {
  if (codec.name == codec::kDefaultCodec) return " (default)";
  return codec.NeedsCodebooks() ? ":codebooks=FILE" : "";
}

void PrintTable(const std::vector<Row>& rows, const codec::CacheGeometry& geometry, int tokens) {
  std::vector<std::vector<std::string>> table = {{"codec", "bits/value", "bytes/token",
                                                  absl::StrCat(tokens, " tokens"), "16 bit / this",
                                                  "sinks", "recent", "backends"}};
  for (const Row& row : rows) {
    if (!row.fits) {
      table.push_back({row.codec.name, absl::StrFormat("%.3f", row.bits_per_value), "-", "-", "-",
                       absl::StrCat(row.codec.window.sinks), absl::StrCat(row.codec.window.recent),
                       absl::StrCat("(for models of ", LayersOf(row.codec), " layers)")});
      continue;
    }
    table.push_back({row.codec.name + Remark(row.codec),
                     absl::StrFormat("%.3f", row.bits_per_value),
                     absl::StrFormat("%.0f", row.bytes_per_token), FormatBytes(row.handoff_bytes),
                     absl::StrFormat("%.2f", row.raw16_bytes / row.handoff_bytes),
                     absl::StrCat(row.codec.window.sinks), absl::StrCat(row.codec.window.recent),
                     row.backends.empty() ? "none" : absl::StrJoin(row.backends, " ")});
  }
  std::cout << geometry.layers << " layers, " << geometry.kv_heads << " KV heads, head_dim "
            << geometry.head_dim << "\n\n"
            << FormatTable(table);
}

void PrintJson(const std::vector<Row>& rows, const codec::CacheGeometry& geometry, int tokens) {
  nlohmann::json json = {{"layers", geometry.layers},
                         {"kv_heads", geometry.kv_heads},
                         {"head_dim", geometry.head_dim},
                         {"tokens", tokens}};
  for (const Row& row : rows) {
    nlohmann::json codec = {{"name", row.codec.name},
                            {"hash", absl::StrFormat("%016x", row.codec.Hash())},
                            {"bits_per_value", row.bits_per_value},
                            {"sinks", row.codec.window.sinks},
                            {"recent", row.codec.window.recent},
                            {"backends", row.backends}};
    if (row.codec.model_layers > 0) codec["model_layers"] = row.codec.model_layers;
    if (row.fits) {
      codec["bytes_per_token"] = row.bytes_per_token;
      codec["handoff_bytes"] = row.handoff_bytes;
      codec["raw16_bytes"] = row.raw16_bytes;
    }
    json["codecs"].push_back(std::move(codec));
  }
  std::cout << json.dump(2) << '\n';
}

absl::Status ListCodecs(const CodecsFlags& flags) {
  KVF_ASSIGN_OR_RETURN(const codec::CacheGeometry geometry, Geometry(flags));
  KVF_ASSIGN_OR_RETURN(const std::vector<Row> rows, DescribeAll(flags, geometry));
  if (flags.output == OutputFormat::kJson) {
    PrintJson(rows, geometry, flags.tokens);
  } else {
    PrintTable(rows, geometry, flags.tokens);
  }
  return absl::OkStatus();
}

}  // namespace

void AddCodecs(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "codecs", "List codecs with bits per value and bytes per token, scales included");
  auto flags = std::make_shared<CodecsFlags>();
  AddOutputFlag(*command, flags->output);
  command->add_option("names", flags->names,
                      "only these; parameters after a colon [all registered]");
  command
      ->add_option("--model", flags->model,
                   "take the shape from a .gguf file or a Hugging Face directory")
      ->check(CLI::ExistingPath);
  command->add_option("--layers", flags->layers)->capture_default_str()->check(CLI::Range(1, 1024));
  command->add_option("--kv-heads", flags->kv_heads)
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  command->add_option("--head-dim", flags->head_dim)
      ->capture_default_str()
      ->check(CLI::IsMember({64, 96, 128, 256}));
  command->add_option("--tokens", flags->tokens, "of the hand-off that is priced")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  command->footer(R"(Examples:
  kvferry codecs --model SmolLM2-135M-Instruct.Q4_1.gguf
  kvferry codecs kivi-2-g64 "kivi-2-g64:recent=128,layer.0=8/8" --layers 80 --output json
  kvferry codecs kvtuner:mine.json --model SmolLM2-135M-Instruct.Q4_1.gguf)");
  command->callback([flags] {
    if (const absl::Status done = ListCodecs(*flags); !done.ok())
      throw CLI::RuntimeError(Fail(done));
  });
}

}  // namespace kvferry::cli
