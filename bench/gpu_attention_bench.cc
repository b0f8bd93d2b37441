// Decode attention on compressed blocks against the best fp16 attention of LibTorch:
//   gpu_test.sh --bench gpu_attention      in a bundle (scripts/bundle.sh), into its results/

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/attention_caches.h"
#include "bench/gpu_graph.h"
#include "bench/read_stream.h"
#include "bench/report.h"
#include "bench/sm_clock.h"
#include "bench/torch_attention.h"
#include "common/status_macros.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"
#include "kvcodec/codec.h"

// On the caches of bench/attention_caches.h. Every launch of a graph works on another one, more
// than three times the L2 in all.
namespace kvferry::bench {
namespace {

using kernels::DeviceBuffer;
using kernels::Stream;

constexpr int kLaunches = 20;          // of a graph, at least
constexpr double kCeilingBytes = 2e9;  // that the ceiling reads in a launch, at least

constexpr char kProfile[] = "kvtuner:c3";  // of 3 bits in the mean, without scales

constexpr absl::Duration kRest = absl::Milliseconds(300);

struct Options {
  int replays = 40;
  std::string out, only;
  std::vector<std::string> codecs;  // by name; empty: all
  bool alone = false;
};

// What the issue asks for on an H200, as ratio over fp16 and as fraction of the ceiling.
struct Bar {
  double over_fp16 = 0, of_ceiling = 0;
};
struct Measured {
  CacheShape shape;
  Bar bits2, bits4, k4v2, nf4, cq2c4b, profile;
};
const std::vector<Measured> kMeasured = {
    {{8, 32768}, {5.3, 0.80}, {3.2, 0.88}, {4.0, 0}, {2.5, 0}, {1.5, 0}, {3.5, 0}},
    {{64, 32768}, {0, 0.84}, {0, 0.95}, {}},
    {{1, 32768}, {3.4, 0}, {}, {}},
    {{1, 131072}, {4.7, 0}, {3.1, 0}, {}},
    {{32, 8192}, {4.8, 0}, {}, {}},
    {{64, 4096}, {4.4, 0}, {}, {}},
    {{1, 8192}, {1.3, 0}, {1.3, 0}, {}},
    {{1, 4096}, {1.0, 0}, {1.0, 0}, {}},
};

class Bench {
 public:
  Bench(Options options, Stream stream, DeviceBuffer sink, kernels::DeviceInfo device)
      : options_(std::move(options)),
        stream_(std::move(stream)),
        sink_(std::move(sink)),
        device_(std::move(device)) {}

  absl::Status Run(Report& report) {
    for (const Measured& measured : kMeasured) {
      if (!options_.only.empty() && measured.shape.name() != options_.only) continue;
      KVF_RETURN_IF_ERROR(RunShape(measured, report));
    }
    return absl::OkStatus();
  }

 private:
  struct Fp16 {
    std::string kernel;
    Graph graph;
  };

  // Those kernels of LibTorch that take the shape.
  absl::StatusOr<std::vector<Fp16>> Baselines(const CacheShape& shape, TorchAttention& torch,
                                              int copies) {
    std::vector<Fp16> graphs;
    for (const auto& [name, kernel] : {std::pair{"FLASH", TorchAttention::Kernel::kFlash},
                                       {"CUDNN", TorchAttention::Kernel::kCudnn}}) {
      absl::Status status;  // the first call allocates, which a capture cannot
      for (int i = 0; i < 3 && status.ok(); ++i) status = torch.Launch(kernel, i % copies);
      KVF_RETURN_IF_ERROR(stream_.Synchronize());
      if (!status.ok()) {
        std::cerr << name << " is not there for " << shape.name() << ": " << status.message()
                  << '\n';
        continue;
      }
      const double bytes = static_cast<double>(Launches(copies)) * shape.batch *
                           codec::Raw16Bytes(shape.tokens, kKvHeads, kHeadDim);
      auto graph = Graph::Capture(bytes, stream_, [&]() -> absl::Status {
        for (int i = 0; i < Launches(copies); ++i) {
          KVF_RETURN_IF_ERROR(torch.Launch(kernel, i % copies));
        }
        return absl::OkStatus();
      });
      KVF_RETURN_IF_ERROR(graph.status());
      graphs.push_back({name, *std::move(graph)});
    }
    if (graphs.empty()) return absl::UnavailableError("LibTorch has no fp16 attention here");
    return graphs;
  }
  absl::StatusOr<Graph> CaptureOurs(AttentionCaches& caches, bool early) {
    const int launches = Launches(caches.copies());
    return Graph::Capture(caches.block_bytes() * launches, stream_, [&]() -> absl::Status {
      for (int i = 0; i < launches; ++i) {
        KVF_RETURN_IF_ERROR(caches.Launch(i % caches.copies(), early, stream_));
      }
      return absl::OkStatus();
    });
  }
  static codec::BlockSpec ScalarSpec(int k_bits, int v_bits) {
    return {.kind = codec::BlockKind::kScalar,
            .head_dim = kHeadDim,
            .k_bits = k_bits,
            .v_bits = v_bits,
            .k_group_tokens = 64,
            .v_group_channels = 128};
  }
  static codec::BlockSpec CoupledSpec(const codec::Codebooks& books) {
    return {.kind = codec::BlockKind::kCoupled,
            .head_dim = kHeadDim,
            .coupling = books.shape().coupling,
            .codebooks = &books};
  }
  // Centroids as the values are, of normal distribution.
  static absl::StatusOr<std::shared_ptr<const codec::Codebooks>> RandomCodebooks(
      const codec::Coupling& coupling) {
    const codec::CodebookShape shape = {
        .layers = 1, .kv_heads = kKvHeads, .head_dim = kHeadDim, .coupling = coupling};
    std::vector<float> frequencies;
    for (int i = 0; i < kHeadDim / 2; ++i) {
      frequencies.push_back(std::pow(500000.0f, -2.0f * static_cast<float>(i) / kHeadDim));
    }
    return codec::Codebooks::Create(shape, frequencies, RandomHalves(shape.values()), "{}");
  }
  static int Launches(int copies) { return std::max(kLaunches, copies); }

  absl::Status RunShape(const Measured& measured, Report& report) {
    const CacheShape& shape = measured.shape;
    const double fp16_bytes =
        static_cast<double>(shape.batch) * codec::Raw16Bytes(shape.tokens, kKvHeads, kHeadDim);
    const int copies =
        1 + static_cast<int>(3.2 * static_cast<double>(device_.l2_bytes) / fp16_bytes);
    KVF_ASSIGN_OR_RETURN(const std::unique_ptr<TorchAttention> torch,
                         TorchAttention::Create(shape.batch, shape.tokens, kQHeads, kKvHeads,
                                                kHeadDim, copies, stream_));
    std::vector<std::shared_ptr<const codec::Codebooks>> books;
    for (const codec::Coupling coupling :
         {codec::Coupling{2, 4}, {4, 8}, {2, 8}, {8, 8}, {8, 10}}) {
      KVF_ASSIGN_OR_RETURN(books.emplace_back(), RandomCodebooks(coupling));
    }
    const struct {
      const char* name;
      codec::BlockSpec spec;
      Bar bar;
    } codecs[] = {
        {"K2V2", ScalarSpec(2, 2), measured.bits2},
        {"K4V4", ScalarSpec(4, 4), measured.bits4},
        {"K4V2", ScalarSpec(4, 2), measured.k4v2},
        {"NF4",
         {.kind = codec::BlockKind::kLut, .head_dim = kHeadDim, .table = codec::LutTable::kNf4},
         measured.nf4},
        {"ANF4",
         {.kind = codec::BlockKind::kLut, .head_dim = kHeadDim, .table = codec::LutTable::kAnf4},
         {}},
        {"NF3",
         {.kind = codec::BlockKind::kLut, .head_dim = kHeadDim, .table = codec::LutTable::kNf3},
         {}},
        {"LM2",
         {.kind = codec::BlockKind::kLut, .head_dim = kHeadDim, .table = codec::LutTable::kLm2},
         {}},
        {"CQ-2C4B", CoupledSpec(*books[0]), measured.cq2c4b},
        {"CQ-4C8B", CoupledSpec(*books[1]), {}},
        {"CQ-2C8B", CoupledSpec(*books[2]), {}},
        {"CQ-8C8B", CoupledSpec(*books[3]), {}},
        {"CQ-8C10B", CoupledSpec(*books[4]), {}},
        {"FP8", {.kind = codec::BlockKind::kFp8, .head_dim = kHeadDim}, {}},
        {"INT8", {.kind = codec::BlockKind::kInt8, .head_dim = kHeadDim}, {}}};
    for (const auto& codec : codecs) {
      if (!Wanted(codec.name)) continue;
      const codec::BlockSpec& spec = codec.spec;
      KVF_ASSIGN_OR_RETURN(const std::unique_ptr<AttentionCaches> caches,
                           AttentionCaches::Create(spec, shape, device_.l2_bytes, stream_));
      const int launches = Launches(caches->copies());
      KVF_ASSIGN_OR_RETURN(Graph ours, CaptureOurs(*caches, false));
      KVF_ASSIGN_OR_RETURN(Graph early, CaptureOurs(*caches, true));
      const double cache_bytes = caches->block_bytes() * caches->copies();
      const int rounds = static_cast<int>(std::ceil(kCeilingBytes / cache_bytes));
      KVF_ASSIGN_OR_RETURN(Graph ceiling, Graph::Capture(cache_bytes * rounds, stream_, [&] {
                             return LaunchReadStream(caches->table(0),
                                                     caches->pages() * caches->copies(), kKvHeads,
                                                     static_cast<int>(codec::BlockBytes(spec)),
                                                     rounds, sink_.as<std::uint32_t>(), stream_);
                           }));
      KVF_ASSIGN_OR_RETURN(std::vector<Fp16> fp16, Baselines(shape, *torch, copies));
      std::vector<Graph*> graphs = {&ours, &early, &ceiling};
      for (Fp16& baseline : fp16) graphs.push_back(&baseline.graph);
      KVF_ASSIGN_OR_RETURN(SmClock clock, SmClock::Create());
      KVF_RETURN_IF_ERROR(clock.Start(stream_));
      KVF_RETURN_IF_ERROR(Interleave(stream_, options_.replays, graphs));
      KVF_ASSIGN_OR_RETURN(const double ghz, clock.Stop(stream_));
      const std::string what = absl::StrCat(codec.name, ", ", shape.name());
      Add(what, codec.bar, ours, ceiling, fp16, launches, Launches(copies), ghz, report);
      Add(what + ", launched early", codec.bar, early, ceiling, fp16, launches, Launches(copies),
          ghz, report);
      if (options_.alone) KVF_RETURN_IF_ERROR(RunAlone(what, early, ceiling, launches, report));
    }
    if (measured.profile.over_fp16 == 0 || !Wanted(kProfile)) return absl::OkStatus();
    return RunProfile(measured, *torch, copies, report);
  }

  bool Wanted(const std::string& codec) const {
    return options_.codecs.empty() || std::find(options_.codecs.begin(), options_.codecs.end(),
                                                codec) != options_.codecs.end();
  }

  // Blocks of one pair of bits, and the layers of a profile that have them.
  struct Pair {
    codec::BlockSpec spec;
    int layers = 0;
    std::unique_ptr<AttentionCaches> caches;
    std::vector<Graph> graphs;  // plain, and launched early
    int launches() const { return Launches(caches->copies()); }
  };

  absl::StatusOr<std::vector<Pair>> PairsOf(const codec::Codec& codec, const CacheShape& shape) {
    std::vector<Pair> pairs;
    for (int layer = 0; layer < codec.model_layers; ++layer) {
      KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(layer, kHeadDim));
      auto pair = std::find_if(pairs.begin(), pairs.end(), [&](const Pair& known) {
        return known.spec.k_bits == spec.k_bits && known.spec.v_bits == spec.v_bits;
      });
      if (pair == pairs.end()) pair = pairs.insert(pair, Pair{.spec = spec});
      ++pair->layers;
    }
    for (Pair& pair : pairs) {
      KVF_ASSIGN_OR_RETURN(pair.caches,
                           AttentionCaches::Create(pair.spec, shape, device_.l2_bytes, stream_));
      for (const bool early : {false, true}) {
        KVF_ASSIGN_OR_RETURN(Graph graph, CaptureOurs(*pair.caches, early));
        pair.graphs.push_back(std::move(graph));
      }
    }
    return pairs;
  }

  // A model's layers differ in bits: the time of all its layers, against as many of the best fp16.
  absl::Status RunProfile(const Measured& measured, TorchAttention& torch, int copies,
                          Report& report) {
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(kProfile));
    KVF_ASSIGN_OR_RETURN(std::vector<Pair> pairs, PairsOf(codec, measured.shape));
    KVF_ASSIGN_OR_RETURN(std::vector<Fp16> fp16, Baselines(measured.shape, torch, copies));
    std::vector<Graph*> graphs;
    for (Fp16& baseline : fp16) graphs.push_back(&baseline.graph);
    for (Pair& pair : pairs) {
      for (Graph& graph : pair.graphs) graphs.push_back(&graph);
    }
    KVF_ASSIGN_OR_RETURN(SmClock clock, SmClock::Create());
    KVF_RETURN_IF_ERROR(clock.Start(stream_));
    KVF_RETURN_IF_ERROR(Interleave(stream_, options_.replays, graphs));
    KVF_ASSIGN_OR_RETURN(const double ghz, clock.Stop(stream_));
    for (const bool early : {false, true}) {
      AddProfile(measured, codec, pairs, early, fp16, Launches(copies), ghz, report);
    }
    return absl::OkStatus();
  }

  void AddProfile(const Measured& measured, const codec::Codec& codec,
                  const std::vector<Pair>& pairs, bool early, const std::vector<Fp16>& fp16,
                  int fp16_launches, double ghz, Report& report) {
    double code_bits = 0;
    nlohmann::json us = {{"p10", 0.0}, {"median", 0.0}, {"p90", 0.0}};  // of a layer, in the mean
    nlohmann::json details = {
        {"gpu", device_.name},          {"profile", codec.name},
        {"layers", codec.model_layers}, {"bits_per_value", codec.BitsPerValue(kHeadDim)},
        {"sm_clock_ghz", ghz},          {"runs", options_.replays}};
    for (const Pair& pair : pairs) {
      const double share = static_cast<double>(pair.layers) / codec.model_layers;
      const nlohmann::json of_pair = Microseconds(pair.graphs[early ? 1 : 0], pair.launches());
      for (auto& [quantile, sum] : us.items()) {
        sum = sum.get<double>() + share * of_pair[quantile].get<double>();
      }
      code_bits += share * (pair.spec.k_bits + pair.spec.v_bits) / 2;
      details["pairs"][absl::StrCat("K", pair.spec.k_bits, "V", pair.spec.v_bits)] = {
          {"layers", pair.layers}, {"us", of_pair}};
    }
    const BestFp16 best = Best(fp16, fp16_launches, details);
    const double mean_us = us["median"];
    details["us"] = us;
    report.AddRatio(absl::StrCat("kvtuner profile of mean ", code_bits, " bits (", codec.name,
                                 "), ", measured.shape.name(), early ? ", launched early" : ""),
                    best.us / mean_us, absl::StrCat("best fp16 (", best.kernel, ")"),
                    AtLeast(measured.profile.over_fp16), details);
  }

  // Each by itself on a GPU that has rested: what the power that the others draw takes away.
  absl::Status RunAlone(const std::string& what, Graph& early, Graph& ceiling, int launches,
                        Report& report) {
    KVF_ASSIGN_OR_RETURN(SmClock clock, SmClock::Create());
    double ghz[2] = {};
    Graph* const graphs[] = {&early, &ceiling};
    for (int i = 0; i < 2; ++i) {
      absl::SleepFor(kRest);
      KVF_RETURN_IF_ERROR(clock.Start(stream_));
      KVF_RETURN_IF_ERROR(Interleave(stream_, options_.replays, {graphs[i]}));
      KVF_ASSIGN_OR_RETURN(ghz[i], clock.Stop(stream_));
    }
    report.AddRatio(what + ", launched early, alone, bytes per second",
                    early.rate().median / ceiling.rate().median, "reading the same blocks, alone",
                    "-",
                    {{"gpu", device_.name},
                     {"us", Microseconds(early, launches)},
                     {"read_only_gb_per_s", ceiling.rate().median / 1e9},
                     {"sm_clock_ghz", ghz[0]},
                     {"sm_clock_ghz_reading", ghz[1]},
                     {"runs", options_.replays}});
    return absl::OkStatus();
  }

  static nlohmann::json Microseconds(const Graph& graph, int launches) {
    const Quantiles rate = graph.rate();
    const auto us = [&](double r) { return graph.bytes() / r / launches * 1e6; };
    return {{"p10", us(rate.p90)}, {"median", us(rate.median)}, {"p90", us(rate.p10)}};
  }

  static std::string AtLeast(double bar) { return bar == 0 ? "-" : absl::StrCat(">= ", bar); }

  struct BestFp16 {
    std::string kernel;
    double us = 0;  // of a call
  };
  // All of them go to `details`.
  static BestFp16 Best(const std::vector<Fp16>& fp16, int launches, nlohmann::json& details) {
    BestFp16 best;
    for (const Fp16& baseline : fp16) {
      const nlohmann::json us = Microseconds(baseline.graph, launches);
      details[baseline.kernel + "_us"] = us;
      if (best.kernel.empty() || us["median"] < best.us) best = {baseline.kernel, us["median"]};
    }
    return best;
  }

  void Add(const std::string& what, const Bar& bar, const Graph& ours, const Graph& ceiling,
           const std::vector<Fp16>& fp16, int launches, int fp16_launches, double ghz,
           Report& report) {
    const nlohmann::json us = Microseconds(ours, launches);
    nlohmann::json details = {{"gpu", device_.name},
                              {"us", us},
                              {"block_bytes", ours.bytes() / launches},
                              {"read_only_gb_per_s", ceiling.rate().median / 1e9},
                              {"sm_clock_ghz", ghz},
                              {"runs", options_.replays}};
    const BestFp16 best = Best(fp16, fp16_launches, details);
    report.AddRatio(what, best.us / us["median"].get<double>(),
                    absl::StrCat("best fp16 (", best.kernel, ")"), AtLeast(bar.over_fp16), details);
    report.AddRatio(what + ", bytes per second", ours.rate().median / ceiling.rate().median,
                    "reading the same blocks", AtLeast(bar.of_ceiling), std::move(details));
  }

  Options options_;
  Stream stream_;
  DeviceBuffer sink_;
  kernels::DeviceInfo device_;
};

absl::Status Main(Options options, int argc, char** argv) {
  KVF_ASSIGN_OR_RETURN(kernels::DeviceInfo device, kernels::GetDevice(0));
  KVF_RETURN_IF_ERROR(kernels::UseDevice(0));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  KVF_ASSIGN_OR_RETURN(DeviceBuffer sink, DeviceBuffer::Allocate(256));
  const std::string out = options.out;
  Report report("gpu_attention", argc, argv);
  Bench bench(std::move(options), std::move(stream), std::move(sink), std::move(device));
  KVF_RETURN_IF_ERROR(bench.Run(report));
  return report.Write(out);
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) {
  CLI::App app("Decode attention on compressed blocks on a GPU, against LibTorch's on fp16");
  kvferry::bench::Options options;
  app.add_option("--replays", options.replays, "Samples per row");
  app.add_option("--only", options.only, "One shape, such as '8 x 32k'");
  app.add_option("--codecs", options.codecs, "Codecs, such as K2V2,NF4,kvtuner:c3")->delimiter(',');
  app.add_flag("--alone", options.alone, "Also measure each kernel by itself");
  app.add_option("--out", options.out, "JSON file to write");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvferry::bench::Main(std::move(options), argc, argv);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}
