// Whether a codec loses on a GPU what it loses on CPUs: the same prompts prefilled, quantized,
// adopted and attended on by either, and KL to the same side's 16-bit cache.
//   bin/quality_gpu_bench --model M.gguf --text wiki.test.raw      in a bundle (scripts/bundle.sh)

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/quality/cache_batch.h"
#include "bench/quality/compare.h"
#include "bench/quality/open_device.h"
#include "bench/quality/passages.h"
#include "bench/quality/prompt.h"
#include "bench/quality/quality.h"
#include "bench/report.h"
#include "common/status_macros.h"
#include "model/tokenizer.h"

namespace kvferry::bench {
namespace {

constexpr char kExact[] = "fp16";

struct Options {
  std::string model, text, out, compute = "fp32";
  int passages = 8, prompt_tokens = 1024, decode_tokens = 256;
  std::vector<std::string> codecs = {"kivi-4-g64", "kivi-2-g64", "int8"};
};

// Logits after every token of a passage's second part: [decode_tokens, vocabulary].
using Logits = std::vector<float>;

// Teacher-forced decode of a passage over the codec's cache of its prompt.
absl::StatusOr<Logits> Run(const Options& options, const codec::Codec& codec,
                           std::span<const std::int32_t> tokens, Device& device) {
  KVF_ASSIGN_OR_RETURN(const PrefilledPrompt prompt,
                       PrefillPrompt(device.model(), tokens.first(options.prompt_tokens),
                                     codec.raw_type, options.prompt_tokens));
  KVF_ASSIGN_OR_RETURN(
      const std::unique_ptr<DeviceStore> store,
      DeviceStore::Create(
          codec, cache::RowsNeeded(options.prompt_tokens, options.decode_tokens + 1, codec.window),
          1, device));
  CacheBatch batch(*store);
  const Recipient to = {batch, options.decode_tokens + 1};
  KVF_RETURN_IF_ERROR(ShipPrompt(prompt.layers, std::span(&to, 1)).status());
  Logits all;
  for (int i = 0; i < options.decode_tokens; ++i) {
    KVF_ASSIGN_OR_RETURN(const std::span<const float> logits,
                         batch.Step(tokens.subspan(options.prompt_tokens + i, 1)));
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

// Mean KL of each passage.
double MeanKl(const Logits& exact, const Logits& tested, std::span<const std::int32_t> next) {
  const std::size_t vocabulary = exact.size() / next.size();
  double sum = 0;
  for (std::size_t i = 0; i < next.size(); ++i) {
    sum += Compare(std::span(exact).subspan(i * vocabulary, vocabulary),
                   std::span(tested).subspan(i * vocabulary, vocabulary), next[i])
               .kl;
  }
  return sum / static_cast<double>(next.size());
}

struct MeanError {
  double mean = 0, error = 0;  // standard, of the mean
};
MeanError MeanOf(std::span<const double> values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  for (const double value : values) squares += std::pow(value - sum / n, 2);
  return {sum / n, std::sqrt(squares / std::max(1.0, n - 1) / n)};
}

// devices: CPUs, then the GPU.
absl::Status Measure(const Options& options, std::span<const std::unique_ptr<Device>> devices,
                     Report& report) {
  KVF_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(options.model));
  KVF_ASSIGN_OR_RETURN(const Text text, ReadText(std::span(&options.text, 1), *tokenizer));
  const int length = options.prompt_tokens + options.decode_tokens + 1;
  KVF_ASSIGN_OR_RETURN(const std::vector<Passage> passages,
                       SpreadPassages(text.tokens, length, options.passages));
  // [device, codec] of passages; and of the 16-bit caches, one device's against the other's.
  std::vector<std::vector<std::vector<double>>> kl(
      devices.size(), std::vector<std::vector<double>>(options.codecs.size()));
  std::vector<double> between;
  for (const Passage& passage : passages) {
    std::cerr << "passage " << passage.number << "\n";
    const auto next = passage.tokens.last(options.decode_tokens);
    std::vector<Logits> exact;
    for (std::size_t at = 0; at < devices.size(); ++at) {
      Device& device = *devices[at];
      KVF_ASSIGN_OR_RETURN(Logits logits,
                           Run(options, codec::FindCodec(kExact).value(), passage.tokens, device));
      exact.push_back(std::move(logits));
      for (std::size_t i = 0; i < options.codecs.size(); ++i) {
        KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(options.codecs[i]));
        KVF_ASSIGN_OR_RETURN(const Logits lossy, Run(options, codec, passage.tokens, device));
        kl[at][i].push_back(MeanKl(exact.back(), lossy, next));
      }
    }
    between.push_back(MeanKl(exact[0], exact[1], next));
  }
  const MeanError floor = MeanOf(between);
  for (std::size_t i = 0; i < options.codecs.size(); ++i) {
    const MeanError cpu = MeanOf(kl[0][i]), gpu = MeanOf(kl[1][i]);
    std::vector<double> differences;
    for (std::size_t p = 0; p < passages.size(); ++p)
      differences.push_back(kl[1][i][p] - kl[0][i][p]);
    const MeanError difference = MeanOf(differences);
    report.AddRatio(absl::StrCat("mean KL to the 16-bit cache, ", options.codecs[i], ", GPU"),
                    gpu.mean / cpu.mean, "CPUs", "the same within noise",
                    {{"gpu_kl", gpu.mean},
                     {"cpu_kl", cpu.mean},
                     {"difference", difference.mean},
                     {"standard_error_of_difference", difference.error},
                     {"kl_of_fp16_gpu_to_fp16_cpu", floor.mean},
                     {"passages", passages.size()},
                     {"positions", passages.size() * options.decode_tokens}});
  }
  return absl::OkStatus();
}

absl::Status Main(const Options& options, int argc, char** argv) {
  model::LoadOptions load = {
      .path = options.model,
      .compute = options.compute == "bf16" ? model::ComputeType::kBf16 : model::ComputeType::kFp32,
      .threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()))};
  std::vector<std::unique_ptr<Device>> devices;
  for (const char* name : {"cpu", "cuda:0"}) {
    load.device = name;
    KVF_ASSIGN_OR_RETURN(devices.emplace_back(), OpenDevice(load));
  }
  Report report("quality_gpu", argc, argv);
  KVF_RETURN_IF_ERROR(Measure(options, devices, report));
  return report.Write(options.out);
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) {
  CLI::App app("KL of lossy caches to 16-bit ones, on a GPU and on CPUs");
  kvferry::bench::Options options;
  app.add_option("--model", options.model, "a .gguf file or a Hugging Face directory")
      ->required()
      ->check(CLI::ExistingPath);
  app.add_option("--text", options.text, "UTF-8")->required()->check(CLI::ExistingFile);
  app.add_option("--compute", options.compute,
                 "of both; in bf16 the noise of the model is about as large as what int8 loses")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--passages", options.passages, "of the text, evenly spread")
      ->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens)->capture_default_str();
  app.add_option("--decode-tokens", options.decode_tokens)->capture_default_str();
  app.add_option("--codec", options.codecs, "repeatable")->capture_default_str();
  app.add_option("--out", options.out, "JSON file to write");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvferry::bench::Main(options, argc, argv);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}
