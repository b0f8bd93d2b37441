// What a hand-off costs a prefill worker on a GPU, with router, workers and a model of random
// weights in processes of their own:
//   gpu_test.sh --bench gpu_prefill      in a bundle (scripts/bundle.sh), into its results/

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/plain_prefill.h"
#include "bench/report.h"
#include "common/device_name.h"
#include "common/status_macros.h"
#include "kernels/cuda/device.h"
#include "kvcodec/plan.h"
#include "model/config_reader.h"
#include "model/model.h"
#include "rpc/convert.h"
#include "tests/integration/cluster.h"

// Three measurements, each of a run that is repeated in turns with its baseline:
//   compute   model time of a prompt that is quantized and shipped meanwhile, over that of the same
//             prompt, in the same steps, in this process, where nobody looks at K and V
//   exposed   from the end of prefill to the moment when the prefill worker knows that decode has
//             adopted everything
//   link      the same over TCP held to a rate by the transport, a lossy codec over fp16
// Workers report model time and exposed time with every answer (v1.HandoffStats).
namespace kvferry::bench {
namespace {

using testing::Answer;
using testing::Cluster;

constexpr char kPrefill[] = "prefill-0", kLinkPrefill[] = "prefill-1";
constexpr char kDecode[] = "decode-0", kBaseDecode[] = "decode-1";
constexpr char kBase[] = "fp16";  // what the codec is compared with on the link
constexpr int kNewTokens = 8;     // the statistics of the hand-off arrive before the last one
constexpr int kSlotBytes = 8 << 20;
constexpr absl::Duration kStartLimit = absl::Minutes(4);  // random weights take their time

struct Options {
  std::string config = "bench/shapes/llama-3.1-8b.json";
  std::string prefill_device = "cuda:0", decode_device;
  std::string compute = "bf16";
  std::string codec = "kivi-2-g64";
  int tokens = 8192, long_tokens = 32768, chunk_tokens = 2048, rounds = 7;
  double link_gbit_per_s = 10;
  std::vector<std::string> only;
  std::string out;
};

bool OnGpu(const std::string& device) { return device.starts_with("cuda"); }

std::vector<std::int32_t> RandomPrompt(int tokens, int vocabulary) {
  std::mt19937 random(3);
  std::uniform_int_distribution<std::int32_t> id(0, vocabulary - 1);
  std::vector<std::int32_t> ids(tokens);
  for (std::int32_t& token : ids) token = id(random);
  return ids;
}

// What the prefill worker measured of one request.
struct HandOff {
  double prefill_s = 0, exposed_s = 0;
  v1::HandoffStats stats;
};

class Bench {
 public:
  // shape: of the model.
  Bench(const Options& options, model::ModelConfig shape, Report& report)
      : options_(options), shape_(std::move(shape)), report_(report) {}

  // The router alone: each part starts the workers that it needs, together, since a large model
  // takes each of them a minute.
  absl::Status StartRouter() {
    KVF_ASSIGN_OR_RETURN(cluster_, Cluster::Start({.prefill_workers = 0,
                                                   .decode_workers = 0,
                                                   .random_weights = options_.config,
                                                   .start_limit = kStartLimit}));
    return absl::OkStatus();
  }

  // What compute and exposed are measured on.
  absl::Status StartPair() {
    KVF_ASSIGN_OR_RETURN(Cluster::Worker decode, DecodeWorker(kDecode, options_.codec));
    KVF_RETURN_IF_ERROR(
        cluster_->Launch({decode, {kPrefill, rpc::Role::kPrefill, PrefillSettings()}}));
    has_pair_ = true;
    return AwaitWorkers({kDecode, kPrefill});
  }

  absl::Status MeasureCompute(PlainPrefill& plain) {
    const std::vector<std::int32_t> ids = Prompt(options_.tokens);
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(options_.codec));
    std::vector<double> ratios, alone, shipped, exposed;
    v1::HandoffStats stats;
    for (int round = 0; round <= options_.rounds; ++round) {
      KVF_ASSIGN_OR_RETURN(const double off, plain.Run(ids, codec.raw_type));
      KVF_ASSIGN_OR_RETURN(const HandOff on, Ship(ids, options_.codec));
      if (round == 0) continue;  // connects, maps memory, chooses algorithms
      alone.push_back(off);
      shipped.push_back(on.prefill_s);
      exposed.push_back(on.exposed_s);
      ratios.push_back(on.prefill_s / off);
      stats = on.stats;
    }
    nlohmann::json details = Details(stats);
    details["ratio"] = ToJson(Summarize(ratios));
    details["on_s"] = ToJson(Summarize(shipped));
    details["off_s"] = ToJson(Summarize(alone));
    details["exposed_s"] = ToJson(Summarize(exposed));
    report_.AddRatio(absl::StrFormat("prefill of %d tokens with %s quantized and shipped",
                                     options_.tokens, options_.codec),
                     Summarize(ratios).median, "without a hand-off", "<= 1.03", details);
    return absl::OkStatus();
  }

  absl::Status MeasureExposed() {
    KVF_ASSIGN_OR_RETURN(const Exposure exposure, Exposed({options_.codec}));
    const Spread seconds = Summarize(exposure.seconds.front());
    nlohmann::json details = Details(exposure.stats.front());
    details["exposed_s"] = ToJson(seconds);
    details["prefill_s"] = ToJson(Summarize(exposure.prefill_s.front()));
    report_.AddRatio(
        absl::StrFormat("end of prefill to adopted, %d tokens, %s, %s", options_.long_tokens,
                        options_.codec, exposure.stats.front().transport()),
        seconds.median / 0.005, "5 ms", "<= 1.0", details);
    return absl::OkStatus();
  }

  absl::Status MeasureLink() {
    KVF_RETURN_IF_ERROR(StartLink());
    const std::vector<std::string> codecs = {options_.codec, kBase};
    KVF_ASSIGN_OR_RETURN(const Exposure exposure, Exposed(codecs));
    const Spread ours = Summarize(exposure.seconds[0]), base = Summarize(exposure.seconds[1]);
    nlohmann::json details = Details(exposure.stats[0]);
    details["rate_limit_bytes_per_s"] = LinkBytesPerSecond();
    details["exposed_s"] = ToJson(ours);
    details["fp16_exposed_s"] = ToJson(base);
    details["prefill_s"] = ToJson(Summarize(exposure.prefill_s[0]));
    details["fp16_prefill_s"] = ToJson(Summarize(exposure.prefill_s[1]));
    details["fp16_payload_bytes"] = exposure.stats[1].payload_bytes();
    report_.AddRatio(
        absl::StrFormat("end of prefill to adopted, %d tokens, %s, %s held to %g Gbit/s",
                        options_.long_tokens, options_.codec, exposure.stats[0].transport(),
                        options_.link_gbit_per_s),
        ours.median / base.median, "fp16 codec", "<= 0.1", details);
    return absl::OkStatus();
  }

 private:
  // By codec, in the order in which they were asked for.
  struct Exposure {
    std::vector<std::vector<double>> seconds, prefill_s;
    std::vector<v1::HandoffStats> stats;
  };

  std::vector<std::int32_t> Prompt(int tokens) const {
    return RandomPrompt(tokens, shape_.vocabulary);
  }
  std::uint64_t LinkBytesPerSecond() const {
    return static_cast<std::uint64_t>(options_.link_gbit_per_s * 1e9 / 8);
  }
  bool GpuToGpu() const { return OnGpu(options_.prefill_device) && OnGpu(options_.decode_device); }

  std::vector<std::string> WorkerSettings(const std::string& device, bool memory_on_gpu) const {
    std::vector<std::string> settings = {absl::StrCat("model.device=", device),
                                         absl::StrCat("model.compute=", options_.compute)};
    if (memory_on_gpu) settings.push_back("transport.memory=cuda");
    return settings;
  }
  std::vector<std::string> PrefillSettings() const {
    std::vector<std::string> settings = WorkerSettings(options_.prefill_device, GpuToGpu());
    settings.push_back(absl::StrCat("chunk_tokens=", options_.chunk_tokens));
    settings.push_back(absl::StrCat("send_slot_bytes=", kSlotBytes));
    // Else a missing link would be measured as something else.
    if (GpuToGpu()) settings.push_back("transport.required=cuda_ipc");
    return settings;
  }
  // With a pool for two of the longest sequences.
  absl::StatusOr<Cluster::Worker> DecodeWorker(const std::string& worker,
                                               const std::string& name) const {
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(name));
    KVF_ASSIGN_OR_RETURN(
        const std::size_t bytes,
        codec::HandoffBytes(
            std::max(options_.tokens, options_.long_tokens) + 2 * codec::kBlockTokens, codec,
            {.layers = shape_.layers, .kv_heads = shape_.kv_heads, .head_dim = shape_.head_dim}));
    std::vector<std::string> settings = WorkerSettings(options_.decode_device, GpuToGpu());
    settings.push_back(absl::StrCat("landing_slot_bytes=", kSlotBytes));
    settings.push_back("max_sequences=4");
    settings.push_back(absl::StrCat("pool_bytes=", 2 * bytes));
    settings.push_back(absl::StrCat("codec=", name));
    return Cluster::Worker{worker, rpc::Role::kDecode, settings};
  }

  // Until these are attached, and nobody else.
  absl::Status AwaitWorkers(const std::vector<std::string>& names) {
    return cluster_->AwaitRouter(kStartLimit, [&names](const v1::GetStateResponse& state) {
      const auto known = [&names](const v1::WorkerState& worker) {
        return std::find(names.begin(), names.end(), worker.name()) != names.end();
      };
      return state.workers_size() == static_cast<int>(names.size()) &&
             std::all_of(state.workers().begin(), state.workers().end(), known);
    });
  }

  // A prefill worker whose payloads go over TCP, at the rate of the link, in place of the one that
  // there may be, and decode workers of both codecs.
  absl::Status StartLink() {
    std::vector<std::string> settings = WorkerSettings(options_.prefill_device, false);
    settings.push_back(absl::StrCat("chunk_tokens=", options_.chunk_tokens));
    settings.push_back(absl::StrCat("send_slot_bytes=", kSlotBytes));
    settings.push_back(absl::StrCat("transport.rate_limit_bytes_per_s=", LinkBytesPerSecond()));
    std::vector<Cluster::Worker> workers = {{kLinkPrefill, rpc::Role::kPrefill, settings}};
    KVF_ASSIGN_OR_RETURN(workers.emplace_back(), DecodeWorker(kBaseDecode, kBase));
    if (has_pair_) {
      cluster_->Stop(kPrefill);
    } else {
      KVF_ASSIGN_OR_RETURN(workers.emplace_back(), DecodeWorker(kDecode, options_.codec));
    }
    KVF_RETURN_IF_ERROR(cluster_->Launch(workers));
    return AwaitWorkers({kDecode, kBaseDecode, kLinkPrefill});
  }

  absl::StatusOr<Exposure> Exposed(const std::vector<std::string>& codecs) {
    const std::vector<std::int32_t> ids = Prompt(options_.long_tokens);
    Exposure exposure;
    exposure.seconds.resize(codecs.size());
    exposure.prefill_s.resize(codecs.size());
    exposure.stats.resize(codecs.size());
    for (int round = 0; round <= options_.rounds; ++round) {
      for (std::size_t i = 0; i < codecs.size(); ++i) {
        KVF_ASSIGN_OR_RETURN(HandOff run, Ship(ids, codecs[i]));
        if (round == 0) continue;
        exposure.seconds[i].push_back(run.exposed_s);
        exposure.prefill_s[i].push_back(run.prefill_s);
        exposure.stats[i] = std::move(run.stats);
      }
    }
    return exposure;
  }

  absl::StatusOr<HandOff> Ship(const std::vector<std::int32_t>& ids, const std::string& codec) {
    v1::GenerateRequest request = testing::GreedyRequest("", kNewTokens);
    request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
    request.set_codec(codec);
    const Answer answer = cluster_->Generate(request);
    KVF_RETURN_IF_ERROR(answer.status);
    const v1::HandoffStats& stats = answer.finished.handoff();
    HandOff run{.prefill_s = rpc::ToSeconds(stats.prefill_time()),
                .exposed_s = rpc::ToSeconds(stats.exposed_time()),
                .stats = stats};
    if (answer.finished.attempts() != 1 || stats.resent_chunks() > 0 || run.prefill_s <= 0 ||
        run.exposed_s <= 0) {
      return absl::InternalError(
          absl::StrCat("not an undisturbed hand-off: ", answer.finished.ShortDebugString()));
    }
    return run;
  }

  nlohmann::json Details(const v1::HandoffStats& stats) const {
    nlohmann::json details = {{"model", options_.config},
                              {"compute", options_.compute},
                              {"prefill_device", options_.prefill_device},
                              {"decode_device", options_.decode_device},
                              {"chunk_tokens", options_.chunk_tokens},
                              {"transport", stats.transport()},
                              {"prompt_tokens", stats.prompt_tokens()},
                              {"payload_bytes", stats.payload_bytes()},
                              {"chunks", stats.chunks()}};
    for (const auto& [name, device] : {std::pair("prefill_gpu", options_.prefill_device),
                                       std::pair("decode_gpu", options_.decode_device)}) {
      const absl::StatusOr<std::optional<int>> gpu = GpuOrdinal(device);
      if (!gpu.ok() || !gpu->has_value()) continue;
      const absl::StatusOr<kernels::DeviceInfo> info = kernels::GetDevice(**gpu);
      if (info.ok()) details[name] = info->name;
    }
    return details;
  }

  const Options& options_;
  const model::ModelConfig shape_;
  Report& report_;
  std::unique_ptr<Cluster> cluster_;
  bool has_pair_ = false;
};

absl::Status Run(const Options& options, int argc, char** argv) {
  const auto wanted = [&](const std::string& part) {
    return options.only.empty() ||
           std::find(options.only.begin(), options.only.end(), part) != options.only.end();
  };
  Report report("gpu_prefill", argc, argv);
  KVF_ASSIGN_OR_RETURN(model::ModelConfig shape, model::ReadHuggingFaceConfig(options.config));
  Bench bench(options, std::move(shape), report);
  KVF_RETURN_IF_ERROR(bench.StartRouter());
  if (wanted("compute") || wanted("exposed")) {
    std::cerr << "starting workers with random weights of " << options.config << '\n';
    KVF_RETURN_IF_ERROR(bench.StartPair());
  }
  if (wanted("compute")) {
    std::cerr << "the same weights in this process\n";
    KVF_ASSIGN_OR_RETURN(
        const auto plain,
        PlainPrefill::Load({.config = options.config,
                            .device = options.prefill_device,
                            .compute = options.compute == "bf16" ? model::ComputeType::kBf16
                                                                 : model::ComputeType::kFp32,
                            .chunk_tokens = options.chunk_tokens}));
    KVF_RETURN_IF_ERROR(bench.MeasureCompute(*plain));
  }
  if (wanted("exposed")) KVF_RETURN_IF_ERROR(bench.MeasureExposed());
  // What has been measured is kept if the last part does not come to its end.
  KVF_RETURN_IF_ERROR(report.Write(options.out));
  if (!wanted("link")) return absl::OkStatus();
  std::cerr << "starting the workers of the link\n";
  KVF_RETURN_IF_ERROR(bench.MeasureLink());
  return report.Write(options.out);
}

int Main(int argc, char** argv) {
  CLI::App app("What a hand-off costs a prefill worker, with a model of random weights");
  Options options;
  app.add_option("--config", options.config, "config.json of the shape")
      ->capture_default_str()
      ->check(CLI::ExistingFile);
  app.add_option("--prefill-device", options.prefill_device, "cpu or cuda:N")
      ->capture_default_str();
  app.add_option("--decode-device", options.decode_device, "cpu or cuda:N [the last GPU]");
  app.add_option("--compute", options.compute, "bf16 or fp32")->capture_default_str();
  app.add_option("--codec", options.codec)->capture_default_str();
  app.add_option("--tokens", options.tokens, "Prompt of the part compute")->capture_default_str();
  app.add_option("--long-tokens", options.long_tokens, "Prompt of the other parts")
      ->capture_default_str();
  app.add_option("--chunk-tokens", options.chunk_tokens, "Prompt tokens per model call")
      ->capture_default_str();
  app.add_option("--rounds", options.rounds)->capture_default_str();
  app.add_option("--link-gbit-per-s", options.link_gbit_per_s)->capture_default_str();
  app.add_option("--only", options.only, "compute, exposed, link [all]");
  app.add_option("--out", options.out, "JSON file to write");
  CLI11_PARSE(app, argc, argv);
  if (options.decode_device.empty()) {
    options.decode_device = absl::StrCat("cuda:", std::max(0, kernels::DeviceCount() - 1));
  }
  const absl::Status status = Run(options, argc, argv);
  if (!status.ok()) std::cerr << "gpu_prefill_bench: " << status << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Main(argc, argv); }
