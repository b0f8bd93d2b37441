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
#include "bench/local_handoff.h"
#include "bench/quality/compare.h"
#include "bench/quality/passages.h"
#include "bench/quality/prompt.h"
#include "bench/quality/quality.h"
#include "bench/report.h"
#include "common/status_macros.h"
#include "decode_node/device_cache_memory.h"
#include "decode_node/device_step_runner.h"
#include "decode_node/host_cache_memory.h"
#include "decode_node/host_step_runner.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda_quantizer.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "model/model.h"
#include "model/tokenizer.h"

namespace kvferry::bench {
namespace {

using decode::CacheStore;
using decode::StoredSequence;

constexpr std::size_t kSlotBytes = std::size_t{8} << 20;
constexpr char kExact[] = "fp16";

struct Options {
  std::string model, text, out, compute = "fp32";
  int passages = 8, prompt_tokens = 1024, decode_tokens = 256;
  std::vector<std::string> codecs = {"kivi-4-g64", "kivi-2-g64", "int8"};
};

// Logits after every token of a passage's second part: [decode_tokens, vocabulary].
using Logits = std::vector<float>;

// CPUs or the GPU: a model there, and what serves its cache.
class Side {
 public:
  Side(std::string name, std::unique_ptr<model::Model> model, const codec::Quantizer& quantizer)
      : name_(std::move(name)), model_(std::move(model)), quantizer_(quantizer) {}
  virtual ~Side() = default;

  const std::string& name() const { return name_; }
  model::Model& model() const { return *model_; }

  // Teacher-forced decode of a passage over the codec's cache of its prompt.
  absl::StatusOr<Logits> Run(const Options& options, const codec::Codec& codec,
                             std::span<const std::int32_t> tokens) {
    const model::ModelConfig& shape = model_->config();
    const codec::CacheGeometry geometry = {
        .layers = shape.layers, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim};
    KVF_ASSIGN_OR_RETURN(const PrefilledPrompt prompt,
                         PrefillPrompt(*model_, tokens.first(options.prompt_tokens), codec.raw_type,
                                       options.prompt_tokens));
    KVF_RETURN_IF_ERROR(WaitForPrefill());
    KVF_ASSIGN_OR_RETURN(
        const std::unique_ptr<CacheStore> store,
        CacheStore::Create(
            {.codec = codec, .geometry = geometry, .pool_bytes = std::uint64_t{1} << 30},
            memory()));
    std::vector<std::unique_ptr<StoredSequence>> sequence(1);
    KVF_ASSIGN_OR_RETURN(sequence[0],
                         store->Reserve(options.prompt_tokens, options.decode_tokens + 1));
    KVF_ASSIGN_OR_RETURN(const kernels::PinnedBuffer slot,
                         kernels::PinnedBuffer::Allocate(kSlotBytes));
    KVF_RETURN_IF_ERROR(HandOff(prompt.layers, quantizer_, *store, slot.span(), sequence).status());
    KVF_ASSIGN_OR_RETURN(const std::unique_ptr<decode::StepRunner> runner, MakeRunner(*store));
    Logits all;
    std::vector<StoredSequence*> batch = {sequence[0].get()};
    for (int i = 0; i < options.decode_tokens; ++i) {
      const std::int32_t position = options.prompt_tokens + i;
      KVF_ASSIGN_OR_RETURN(const std::span<const float> logits,
                           runner->Step({.tokens = tokens.subspan(position, 1),
                                         .positions = std::span(&position, 1),
                                         .sequences = batch,
                                         .drop_cancelled = [] {}}));
      all.insert(all.end(), logits.begin(), logits.end());
      if (!batch[0]->MustFlush()) continue;
      for (const absl::Status& status : store->Flush(batch)) KVF_RETURN_IF_ERROR(status);
    }
    return all;
  }

 protected:
  virtual decode::CacheMemory& memory() = 0;
  virtual absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(CacheStore& store) = 0;
  virtual absl::Status WaitForPrefill() = 0;

 private:
  const std::string name_;
  const std::unique_ptr<model::Model> model_;
  const codec::Quantizer& quantizer_;
};

class CpuSide final : public Side {
 public:
  CpuSide(std::unique_ptr<model::Model> model, const codec::Backend& backend)
      : Side("CPUs", std::move(model), backend), backend_(backend), memory_(backend) {}

 private:
  decode::CacheMemory& memory() override { return memory_; }
  absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(CacheStore& store) override {
    return std::make_unique<decode::HostStepRunner>(model(), store, backend_);
  }
  absl::Status WaitForPrefill() override { return absl::OkStatus(); }

  const codec::Backend& backend_;
  decode::HostCacheMemory memory_;
};

class GpuSide final : public Side {
 public:
  GpuSide(std::unique_ptr<model::Model> model, const codec::Quantizer& quantizer,
          decode::DeviceCacheMemory& memory, kernels::Stream& stream)
      : Side("GPU", std::move(model), quantizer), memory_(memory), stream_(stream) {}

 private:
  decode::CacheMemory& memory() override { return memory_; }
  absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(CacheStore& store) override {
    return decode::DeviceStepRunner::Create({.max_sequences = 1}, model(), store, stream_,
                                            kernels::DecodeAttention::Create);
  }
  absl::Status WaitForPrefill() override { return stream_.Synchronize(); }

  decode::DeviceCacheMemory& memory_;
  kernels::Stream& stream_;
};

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

absl::Status Measure(const Options& options, std::span<Side* const> sides, Report& report) {
  KVF_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(options.model));
  KVF_ASSIGN_OR_RETURN(const Text text, ReadText(options.text, *tokenizer));
  const int length = options.prompt_tokens + options.decode_tokens + 1;
  KVF_ASSIGN_OR_RETURN(const std::vector<Passage> passages,
                       SpreadPassages(text.tokens, length, options.passages));
  // [side, codec] of passages; and of the 16-bit caches, one side's against the other's.
  std::vector<std::vector<std::vector<double>>> kl(
      sides.size(), std::vector<std::vector<double>>(options.codecs.size()));
  std::vector<double> between;
  for (const Passage& passage : passages) {
    std::cerr << "passage " << passage.number << "\n";
    const auto next = passage.tokens.last(options.decode_tokens);
    std::vector<Logits> exact;
    for (std::size_t side = 0; side < sides.size(); ++side) {
      KVF_ASSIGN_OR_RETURN(
          Logits logits,
          sides[side]->Run(options, codec::FindCodec(kExact).value(), passage.tokens));
      exact.push_back(std::move(logits));
      for (std::size_t i = 0; i < options.codecs.size(); ++i) {
        KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(options.codecs[i]));
        KVF_ASSIGN_OR_RETURN(const Logits lossy, sides[side]->Run(options, codec, passage.tokens));
        kl[side][i].push_back(MeanKl(exact.back(), lossy, next));
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
  KVF_RETURN_IF_ERROR(kernels::GetDevice(0).status());
  KVF_RETURN_IF_ERROR(kernels::UseDevice(0));
  KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create());
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  KVF_ASSIGN_OR_RETURN(const auto backend, codec::CreateCpuBackend({.threads = threads}));
  KVF_ASSIGN_OR_RETURN(const auto quantizer, kernels::CreateCudaQuantizer(stream));
  const model::ComputeType compute =
      options.compute == "bf16" ? model::ComputeType::kBf16 : model::ComputeType::kFp32;
  KVF_ASSIGN_OR_RETURN(auto on_cpu,
                       model::Model::Load({.path = options.model, .compute = compute}));
  KVF_ASSIGN_OR_RETURN(
      auto on_gpu,
      model::Model::Load(
          {.path = options.model, .compute = compute, .device = "cuda:0", .stream = stream.get()}));
  KVF_ASSIGN_OR_RETURN(
      const auto memory,
      decode::DeviceCacheMemory::Create(
          {.slot_bytes = kSlotBytes, .max_flush_items = on_gpu->config().layers}, stream));
  CpuSide cpu(std::move(on_cpu), *backend);
  GpuSide gpu(std::move(on_gpu), *quantizer, *memory, stream);
  Side* const sides[] = {&cpu, &gpu};
  Report report("quality_gpu", argc, argv);
  KVF_RETURN_IF_ERROR(Measure(options, sides, report));
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
