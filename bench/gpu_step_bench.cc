// Decode steps of a model with random weights on a GPU: a compressed cache against one of 16 bits,
// and how many sequences a pool holds.
//   gpu_test.sh --bench gpu_step      in a bundle (scripts/bundle.sh), into its results/

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/local_handoff.h"
#include "bench/report.h"
#include "common/status_macros.h"
#include "decode_node/device_cache_memory.h"
#include "decode_node/device_step_runner.h"
#include "kernels/cuda/device.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/half.h"
#include "kvcodec/plan.h"
#include "model/model.h"

namespace kvferry::bench {
namespace {

using decode::CacheStore;
using decode::StoredSequence;
using kernels::Stream;

constexpr std::size_t kSlotBytes = std::size_t{8} << 20;
constexpr int kWarmUp = 3;        // steps: as they are, captured, launched
constexpr char kBase[] = "fp16";  // what the others are compared with

struct Options {
  std::string config = "bench/shapes/llama-3.1-8b.json";
  int sequences = 8, tokens = 32768, steps = 60;
  double pool_gb = 60;
  std::vector<std::string> codecs = {"kivi-2-g64", "kivi-4-g64"};
  std::string out;
};

// The first GPU, and what a model on it needs.
struct Machine {
  kernels::DeviceInfo info;
  Stream stream;
  std::unique_ptr<codec::Backend> backend;
};

// Random K and V of one layer's prompt in host memory.
class RandomKv {
 public:
  RandomKv(const codec::CacheGeometry& geometry, int tokens)
      : values_(std::size_t{2} * geometry.kv_heads * tokens * geometry.head_dim) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (std::uint16_t& value : values_) value = codec::HalfFromFloat(normal(random));
    view_.k = values_.data();
    view_.v = values_.data() + values_.size() / 2;
    view_.kv_heads = geometry.kv_heads;
    view_.tokens = tokens;
    view_.head_dim = geometry.head_dim;
    view_.head_stride = std::int64_t{tokens} * geometry.head_dim;
    view_.token_stride = geometry.head_dim;
  }
  const codec::KvView& view() const { return view_; }

 private:
  std::vector<std::uint16_t> values_;
  codec::KvView view_;
};

std::size_t RowBytes(const codec::Codec& codec, const codec::CacheGeometry& geometry) {
  std::size_t bytes = 0;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    bytes += codec::PageBytes(codec.ForLayer(layer, geometry.head_dim).value(), geometry.kv_heads);
  }
  return bytes;
}

// A store on the GPU with its memory.
struct DeviceStore {
  std::unique_ptr<decode::DeviceCacheMemory> memory;
  std::unique_ptr<CacheStore> cache;

  static absl::StatusOr<DeviceStore> Create(const codec::Codec& codec,
                                            const codec::CacheGeometry& geometry, int sequences,
                                            std::uint64_t pool_bytes, Stream& stream) {
    DeviceStore store;
    KVF_ASSIGN_OR_RETURN(
        store.memory,
        decode::DeviceCacheMemory::Create(
            {.slot_bytes = kSlotBytes, .max_flush_items = geometry.layers * sequences}, stream));
    KVF_ASSIGN_OR_RETURN(
        store.cache,
        CacheStore::Create({.codec = codec, .geometry = geometry, .pool_bytes = pool_bytes},
                           *store.memory));
    return store;
  }
};

// Sequences of one codec that step together, as the engine has them.
class Batch {
 public:
  static absl::StatusOr<std::unique_ptr<Batch>> Create(const Options& options,
                                                       const std::string& name, model::Model& model,
                                                       Machine& machine) {
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(name));
    const model::ModelConfig& shape = model.config();
    const codec::CacheGeometry geometry = {
        .layers = shape.layers, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim};
    const int new_tokens = options.steps + kWarmUp + 1;
    const std::uint64_t rows = (options.tokens + new_tokens) / codec::kBlockTokens + 2;
    std::unique_ptr<Batch> batch(new Batch(name));
    KVF_ASSIGN_OR_RETURN(
        batch->store_,
        DeviceStore::Create(codec, geometry, options.sequences,
                            rows * options.sequences * RowBytes(codec, geometry), machine.stream));
    CacheStore& cache = *batch->store_.cache;
    for (int i = 0; i < options.sequences; ++i) {
      KVF_ASSIGN_OR_RETURN(auto sequence, cache.Reserve(options.tokens, new_tokens));
      batch->pointers_.push_back(sequence.get());
      batch->sequences_.push_back(std::move(sequence));
    }
    KVF_ASSIGN_OR_RETURN(const kernels::PinnedBuffer slot,
                         kernels::PinnedBuffer::Allocate(kSlotBytes));
    const RandomKv kv(geometry, options.tokens);
    const std::vector<codec::KvView> layers(geometry.layers, kv.view());
    KVF_ASSIGN_OR_RETURN(batch->bytes_,
                         HandOff(layers, *machine.backend, cache, slot.span(), batch->sequences_));
    KVF_ASSIGN_OR_RETURN(batch->runner_, decode::DeviceStepRunner::Create(
                                             {.max_sequences = options.sequences}, model, cache,
                                             machine.stream, kernels::DecodeAttention::Create));
    return batch;
  }

  // One step and the flush of the windows that it filled.
  absl::Status Step() {
    std::vector<std::int32_t> tokens, positions;
    for (const StoredSequence* sequence : pointers_) {
      positions.push_back(sequence->tokens());
      tokens.push_back(positions.back() % 1000);
    }
    std::vector<StoredSequence*> sequences = pointers_;
    const absl::Time begin = absl::Now();
    KVF_RETURN_IF_ERROR(runner_
                            ->Step({.tokens = tokens,
                                    .positions = positions,
                                    .sequences = sequences,
                                    .drop_cancelled = [] {}})
                            .status());
    const absl::Duration step = absl::Now() - begin;
    std::vector<StoredSequence*> full;
    for (StoredSequence* sequence : pointers_) {
      if (sequence->MustFlush()) full.push_back(sequence);
    }
    for (const absl::Status& flushed : store_.cache->Flush(full)) KVF_RETURN_IF_ERROR(flushed);
    const absl::Duration whole = absl::Now() - begin;
    KVF_ASSIGN_OR_RETURN(const absl::Duration model, runner_->model_time());
    step_ms_.push_back(absl::ToDoubleMilliseconds(whole));
    host_ms_.push_back(absl::ToDoubleMilliseconds(step - model));
    model_ms_.push_back(absl::ToDoubleMilliseconds(model));
    return absl::OkStatus();
  }
  void Forget() { step_ms_.clear(), host_ms_.clear(), model_ms_.clear(); }

  const std::string& codec() const { return codec_; }
  std::size_t bytes() const { return bytes_; }
  Spread step_ms() const { return Summarize(step_ms_); }
  Spread model_ms() const { return Summarize(model_ms_); }
  Spread host_ms() const { return Summarize(host_ms_); }

 private:
  explicit Batch(std::string codec) : codec_(std::move(codec)) {}

  const std::string codec_;
  std::size_t bytes_ = 0;  // of one prompt's payloads
  DeviceStore store_;
  std::vector<std::unique_ptr<StoredSequence>> sequences_;
  std::vector<StoredSequence*> pointers_;
  std::unique_ptr<decode::DeviceStepRunner> runner_;
  std::vector<double> step_ms_, model_ms_, host_ms_;
};

// How many sequences of `tokens` tokens a pool takes, each with its window and sinks beside it.
absl::StatusOr<int> CountSequences(const codec::Codec& codec, const codec::CacheGeometry& geometry,
                                   const Options& options, Machine& machine) {
  KVF_ASSIGN_OR_RETURN(
      const DeviceStore store,
      DeviceStore::Create(codec, geometry, 1, static_cast<std::uint64_t>(options.pool_gb * 1e9),
                          machine.stream));
  std::vector<std::unique_ptr<StoredSequence>> sequences;
  while (true) {
    auto sequence = store.cache->Reserve(options.tokens, 1);
    if (absl::IsResourceExhausted(sequence.status())) break;
    KVF_RETURN_IF_ERROR(sequence.status());
    sequences.push_back(*std::move(sequence));
  }
  return static_cast<int>(sequences.size());
}

std::string ShapeName(const Options& options) {
  return absl::StrCat(options.sequences, " x ", options.tokens / 1024, "k");
}

absl::Status MeasureSteps(const Options& options, model::Model& model, Machine& machine,
                          Report& report) {
  std::vector<std::unique_ptr<Batch>> batches;
  std::vector<std::string> codecs = {kBase};
  codecs.insert(codecs.end(), options.codecs.begin(), options.codecs.end());
  for (const std::string& codec : codecs) {
    std::cerr << "filling " << codec << "\n";
    KVF_ASSIGN_OR_RETURN(auto batch, Batch::Create(options, codec, model, machine));
    batches.push_back(std::move(batch));
  }
  for (int i = 0; i < kWarmUp + options.steps; ++i) {
    for (const auto& batch : batches) {
      if (i == kWarmUp) batch->Forget();
      KVF_RETURN_IF_ERROR(batch->Step());
    }
  }
  const Batch& base = *batches.front();
  for (const auto& batch : batches) {
    const nlohmann::json details = {{"gpu", machine.info.name},
                                    {"model", options.config},
                                    {"step_ms", ToJson(batch->step_ms())},
                                    {"model_ms", ToJson(batch->model_ms())},
                                    {"host_ms", ToJson(batch->host_ms())},
                                    {"fp16_step_ms", ToJson(base.step_ms())},
                                    {"bytes_per_sequence", batch->bytes()}};
    if (batch.get() != &base) {
      report.AddRatio(absl::StrCat("decode step, ", batch->codec(), ", ", ShapeName(options)),
                      batch->step_ms().median / base.step_ms().median, "fp16 codec",
                      batch->codec() == "kivi-2-g64" ? "<= 0.55" : "-", details);
    }
    report.AddRatio(absl::StrCat("host part of a step, ", batch->codec(), ", ", ShapeName(options)),
                    batch->host_ms().median / batch->step_ms().median,
                    absl::StrCat("step; ", batch->host_ms().median, " ms"), "<= 0.3 ms", details);
  }
  return absl::OkStatus();
}

absl::Status MeasurePools(const Options& options, const codec::CacheGeometry& geometry,
                          Machine& machine, Report& report) {
  const auto count = [&](const std::string& name) -> absl::StatusOr<int> {
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(name));
    return CountSequences(codec, geometry, options, machine);
  };
  KVF_ASSIGN_OR_RETURN(const int base, count(kBase));
  for (const std::string& codec : options.codecs) {
    KVF_ASSIGN_OR_RETURN(const int held, count(codec));
    report.AddRatio(absl::StrCat("sequences of ", options.tokens / 1024, "k in a pool of ",
                                 options.pool_gb, " GB, ", codec),
                    static_cast<double>(held) / base, "fp16 codec",
                    codec == "kivi-2-g64" ? ">= 6.0" : "-",
                    {{"gpu", machine.info.name}, {"sequences", held}, {"fp16_sequences", base}});
  }
  return absl::OkStatus();
}

absl::Status Main(const Options& options, int argc, char** argv) {
  KVF_ASSIGN_OR_RETURN(kernels::DeviceInfo info, kernels::GetDevice(0));
  KVF_RETURN_IF_ERROR(kernels::UseDevice(0));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  KVF_ASSIGN_OR_RETURN(
      auto backend,
      codec::CreateCpuBackend(
          {.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()))}));
  Machine machine{std::move(info), std::move(stream), std::move(backend)};
  Report report("gpu_step", argc, argv);
  std::cerr << "random weights of " << options.config << "\n";
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model,
                       model::Model::Load({.path = options.config,
                                           .random_weights = true,
                                           .compute = model::ComputeType::kBf16,
                                           .device = "cuda:0",
                                           .stream = machine.stream.get()}));
  KVF_RETURN_IF_ERROR(MeasureSteps(options, *model, machine, report));
  const model::ModelConfig& shape = model->config();
  KVF_RETURN_IF_ERROR(MeasurePools(
      options, {.layers = shape.layers, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim},
      machine, report));
  return report.Write(options.out);
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) {
  CLI::App app("Decode steps with a compressed cache on a GPU, of a model with random weights");
  kvferry::bench::Options options;
  app.add_option("--config", options.config, "config.json of the shape")
      ->capture_default_str()
      ->check(CLI::ExistingFile);
  app.add_option("--sequences", options.sequences)->capture_default_str();
  app.add_option("--tokens", options.tokens, "of each prompt")->capture_default_str();
  app.add_option("--steps", options.steps, "Samples per codec")->capture_default_str();
  app.add_option("--pool-gb", options.pool_gb)->capture_default_str();
  app.add_option("--codec", options.codecs, "Beside fp16; repeatable")->capture_default_str();
  app.add_option("--out", options.out, "JSON file to write");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvferry::bench::Main(options, argc, argv);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}
