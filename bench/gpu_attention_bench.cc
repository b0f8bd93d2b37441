// Decode attention on compressed blocks against the best fp16 attention of LibTorch:
//   gpu_test.sh --bench gpu_attention      in a bundle (scripts/bundle.sh), into its results/

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/gpu_graph.h"
#include "bench/read_stream.h"
#include "bench/report.h"
#include "bench/sm_clock.h"
#include "bench/torch_attention.h"
#include "common/status_macros.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream.h"
#include "kernels/decode_attention.h"
#include "kernels/quantize_block.h"
#include "kvcodec/codec.h"
#include "kvcodec/half.h"
#include "kvcodec/plan.h"

// head_dim 128, 32 query heads on 8 KV heads, 4 sinks, a window of 64..127 tokens. Random values,
// quantized by the production kernel; pages at shuffled places. Every launch of a graph works on
// another cache, more than three times the L2 in all.
namespace kvferry::bench {
namespace {

using kernels::DeviceBuffer;
using kernels::Stream;

constexpr int kKvHeads = 8, kQHeads = 32, kHeadDim = 128;
constexpr codec::WindowSpec kWindow = {.sinks = 4, .recent = 64};
constexpr int kLaunches = 20;          // of a graph, at least
constexpr double kCeilingBytes = 2e9;  // that the ceiling reads in a launch, at least

constexpr absl::Duration kRest = absl::Milliseconds(300);

struct Options {
  int replays = 40;
  std::string out, only;
  std::vector<std::string> codecs;  // by name; empty: all
  bool alone = false;
};

struct Shape {
  int batch, tokens;
  std::string name() const {
    return tokens % 1024 == 0 ? absl::StrCat(batch, " x ", tokens / 1024, "k")
                              : absl::StrCat(batch, " x ", tokens);
  }
};

// What the issue asks for on an H200, as ratio over fp16 and as fraction of the ceiling.
struct Bar {
  double over_fp16 = 0, of_ceiling = 0;
};
struct Measured {
  Shape shape;
  Bar bits2, bits4, k4v2, nf4, cq2c4b;
};
const std::vector<Measured> kMeasured = {
    {{8, 32768}, {5.3, 0.80}, {3.2, 0.88}, {4.0, 0}, {2.5, 0}, {1.5, 0}},
    {{64, 32768}, {0, 0.84}, {0, 0.95}, {}},
    {{1, 32768}, {3.4, 0}, {}, {}},
    {{1, 131072}, {4.7, 0}, {3.1, 0}, {}},
    {{32, 8192}, {4.8, 0}, {}, {}},
    {{64, 4096}, {4.4, 0}, {}, {}},
    {{1, 8192}, {1.3, 0}, {1.3, 0}, {}},
    {{1, 4096}, {1.0, 0}, {1.0, 0}, {}},
};

// Halves of a normal distribution, every 16th three times as large.
std::vector<std::uint16_t> Random(std::size_t count) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = codec::HalfFromFloat(normal(random) * (i % 16 == 3 ? 3.0f : 1.0f));
  }
  return values;
}

// The compressed caches of one shape and codec, and what attends on them.
class Caches {
 public:
  static absl::StatusOr<std::unique_ptr<Caches>> Create(const codec::BlockSpec& spec,
                                                        const Shape& shape, std::size_t l2_bytes,
                                                        Stream& stream) {
    std::unique_ptr<Caches> caches(new Caches(spec, shape));
    KVF_RETURN_IF_ERROR(caches->Fill(l2_bytes, stream));
    return caches;
  }

  int copies() const { return copies_; }
  int pages() const { return plan_.blocks * shape_.batch; }
  // What one call reads of blocks; sinks and windows are not counted.
  double block_bytes() const { return static_cast<double>(pages()) * page_bytes_; }
  const std::byte* const* table(int copy) const {
    return table_.as<const std::byte*>() + static_cast<std::size_t>(pages()) * copy;
  }

  // early: as a decode worker does, before the kernel ahead has ended.
  absl::Status Launch(int copy, bool early, Stream& stream) {
    kernels::AttentionLayer layer;
    layer.sequences = sequences_.as<kernels::AttentionSequence>();
    layer.pages = table(copy);
    layer.pages_settled = early;
    layer.window_offset = static_cast<std::int64_t>(copy) * shape_.batch * WindowValues();
    layer.q = q_.as<std::uint16_t>();
    layer.out = out_.as<std::uint16_t>();
    return attention_->Launch(layer, stream);
  }

 private:
  Caches(const codec::BlockSpec& spec, const Shape& shape)
      : spec_(spec),
        shape_(shape),
        plan_(codec::PlanBlocks(shape.tokens, kWindow)),
        page_bytes_(codec::PageBytes(spec, kKvHeads)) {}

  static std::int64_t WindowValues() {
    return std::int64_t{2} * kKvHeads * codec::WindowCapacity(kWindow) * kHeadDim;
  }
  template <class T>
  static absl::StatusOr<DeviceBuffer> Upload(const std::vector<T>& values, Stream& stream) {
    KVF_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(values.size() * sizeof(T)));
    KVF_RETURN_IF_ERROR(
        kernels::CopyAsync(buffer.data(), values.data(), values.size() * sizeof(T), stream));
    KVF_RETURN_IF_ERROR(stream.Synchronize());
    return buffer;
  }

  // 64 different pages.
  absl::StatusOr<DeviceBuffer> QuantizeSome(Stream& stream) {
    constexpr int kPages = 64, kTokens = kPages * codec::kBlockTokens;
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer kv,
                         Upload(Random(std::size_t{2} * kKvHeads * kTokens * kHeadDim), stream));
    KVF_ASSIGN_OR_RETURN(DeviceBuffer pages, DeviceBuffer::Allocate(page_bytes_ * kPages));
    std::vector<kernels::QuantizeItem> items;
    for (int i = 0; i < kPages; ++i) {
      items.push_back({.k = kv.as<std::uint16_t>(),
                       .v = kv.as<std::uint16_t>() + std::int64_t{kKvHeads} * kTokens * kHeadDim,
                       .page = pages.data() + page_bytes_ * i,
                       .head_stride = std::int64_t{kTokens} * kHeadDim,
                       .token_stride = kHeadDim,
                       .token = kWindow.sinks + i * codec::kBlockTokens,
                       .first_row = i * codec::kBlockTokens,
                       .k_bits = static_cast<std::uint8_t>(spec_.k_bits),
                       .v_bits = static_cast<std::uint8_t>(spec_.v_bits)});
    }
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer list, Upload(items, stream));
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer fault,
                         Upload(std::vector<std::uint64_t>{kernels::kNoFault}, stream));
    kernels::QuantizeParams params;
    params.items = list.as<kernels::QuantizeItem>();
    params.max_items = kPages;
    params.kv_heads = kKvHeads;
    params.head_dim = kHeadDim;
    params.kind = spec_.kind;
    params.table = spec_.table;
    KVF_ASSIGN_OR_RETURN(params.coupled, kernels::CoupledOf(spec_, 0, kKvHeads));
    params.k_group_tokens = spec_.k_group_tokens;
    params.v_group_channels = spec_.v_group_channels;
    params.first_fault = fault.as<std::uint64_t>();
    KVF_RETURN_IF_ERROR(kernels::LaunchQuantizeBlock(params, stream));
    KVF_RETURN_IF_ERROR(stream.Synchronize());
    return pages;
  }

  absl::Status Fill(std::size_t l2_bytes, Stream& stream) {
    copies_ = 1 + static_cast<int>(3.2 * static_cast<double>(l2_bytes) / block_bytes());
    const std::size_t pool_bytes = page_bytes_ * pages() * copies_;
    KVF_ASSIGN_OR_RETURN(pool_, DeviceBuffer::Allocate(pool_bytes));
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer some, QuantizeSome(stream));
    for (std::size_t at = 0; at < pool_bytes; at += some.bytes()) {
      KVF_RETURN_IF_ERROR(kernels::CopyAsync(pool_.data() + at, some.data(),
                                             std::min(some.bytes(), pool_bytes - at), stream));
    }
    std::vector<std::uint32_t> place(static_cast<std::size_t>(pages()) * copies_);
    std::iota(place.begin(), place.end(), 0u);
    std::shuffle(place.begin(), place.end(), std::mt19937(5));
    std::vector<const std::byte*> table;
    for (const std::uint32_t at : place) table.push_back(pool_.data() + page_bytes_ * at);
    KVF_ASSIGN_OR_RETURN(table_, Upload(table, stream));

    const std::size_t sinks = std::size_t{2} * kKvHeads * kWindow.sinks * kHeadDim;
    KVF_ASSIGN_OR_RETURN(sinks_, Upload(Random(sinks * shape_.batch), stream));
    const std::vector<std::uint16_t> window = Random(WindowValues() * shape_.batch);
    KVF_ASSIGN_OR_RETURN(windows_, DeviceBuffer::Allocate(window.size() * 2 * copies_));
    for (int i = 0; i < copies_; ++i) {
      KVF_RETURN_IF_ERROR(kernels::CopyAsync(windows_.data() + window.size() * 2 * i, window.data(),
                                             window.size() * 2, stream));
    }
    std::vector<kernels::AttentionSequence> sequences;
    std::vector<kernels::AttentionLength> lengths;
    for (int i = 0; i < shape_.batch; ++i) {
      sequences.push_back({.sinks = sinks_.as<std::uint16_t>() + sinks * i,
                           .window = windows_.as<std::uint16_t>() + WindowValues() * i,
                           .sink_tokens = plan_.sinks,
                           .window_begin = i % codec::WindowCapacity(kWindow),
                           .window_tokens = plan_.window_tokens(),
                           .first_page = plan_.blocks * i});
      lengths.push_back({.blocks = plan_.blocks,
                         .raw_tokens = plan_.sinks + plan_.window_tokens(),
                         .page_begin = plan_.blocks * i});
    }
    KVF_ASSIGN_OR_RETURN(sequences_, Upload(sequences, stream));
    const std::size_t rows = static_cast<std::size_t>(shape_.batch) * kQHeads * kHeadDim;
    KVF_ASSIGN_OR_RETURN(q_, Upload(Random(rows), stream));
    KVF_ASSIGN_OR_RETURN(out_, DeviceBuffer::Allocate(rows * 2));
    KVF_ASSIGN_OR_RETURN(attention_, kernels::DecodeAttention::Create(
                                         {.spec = spec_,
                                          .q_heads = kQHeads,
                                          .kv_heads = kKvHeads,
                                          .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim)),
                                          .sink_capacity = kWindow.sinks,
                                          .window_capacity = codec::WindowCapacity(kWindow),
                                          .max_sequences = shape_.batch}));
    KVF_RETURN_IF_ERROR(attention_->Plan(lengths, stream));
    return stream.Synchronize();
  }

  const codec::BlockSpec spec_;
  const Shape shape_;
  const codec::BlockPlan plan_;
  const std::size_t page_bytes_;
  int copies_ = 0;
  DeviceBuffer pool_, table_, sinks_, windows_, sequences_, q_, out_;
  std::unique_ptr<kernels::DecodeAttention> attention_;
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
  absl::StatusOr<std::vector<Fp16>> Baselines(const Shape& shape, TorchAttention& torch,
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
    return codec::Codebooks::Create(shape, frequencies, Random(shape.values()), "{}");
  }
  static int Launches(int copies) { return std::max(kLaunches, copies); }

  absl::Status RunShape(const Measured& measured, Report& report) {
    const Shape& shape = measured.shape;
    const double fp16_bytes =
        static_cast<double>(shape.batch) * codec::Raw16Bytes(shape.tokens, kKvHeads, kHeadDim);
    const int copies =
        1 + static_cast<int>(3.2 * static_cast<double>(device_.l2_bytes) / fp16_bytes);
    KVF_ASSIGN_OR_RETURN(const std::unique_ptr<TorchAttention> torch,
                         TorchAttention::Create(shape.batch, shape.tokens, kQHeads, kKvHeads,
                                                kHeadDim, copies, stream_));
    KVF_ASSIGN_OR_RETURN(const auto two_four, RandomCodebooks({2, 4}));
    KVF_ASSIGN_OR_RETURN(const auto four_eight, RandomCodebooks({4, 8}));
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
        {"CQ-2C4B", CoupledSpec(*two_four), measured.cq2c4b},
        {"CQ-4C8B", CoupledSpec(*four_eight), {}},
        {"FP8", {.kind = codec::BlockKind::kFp8, .head_dim = kHeadDim}, {}},
        {"INT8", {.kind = codec::BlockKind::kInt8, .head_dim = kHeadDim}, {}}};
    for (const auto& codec : codecs) {
      if (!options_.codecs.empty() && std::find(options_.codecs.begin(), options_.codecs.end(),
                                                codec.name) == options_.codecs.end())
        continue;
      const codec::BlockSpec& spec = codec.spec;
      KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Caches> caches,
                           Caches::Create(spec, shape, device_.l2_bytes, stream_));
      const int launches = Launches(caches->copies());
      const auto capture = [&](bool early) {
        return Graph::Capture(caches->block_bytes() * launches, stream_, [&]() -> absl::Status {
          for (int i = 0; i < launches; ++i) {
            KVF_RETURN_IF_ERROR(caches->Launch(i % caches->copies(), early, stream_));
          }
          return absl::OkStatus();
        });
      };
      KVF_ASSIGN_OR_RETURN(Graph ours, capture(false));
      KVF_ASSIGN_OR_RETURN(Graph early, capture(true));
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
    return absl::OkStatus();
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

  void Add(const std::string& what, const Bar& bar, const Graph& ours, const Graph& ceiling,
           const std::vector<Fp16>& fp16, int launches, int fp16_launches, double ghz,
           Report& report) {
    const double us = ours.bytes() / ours.rate().median / launches;
    nlohmann::json details = {{"gpu", device_.name},
                              {"us", Microseconds(ours, launches)},
                              {"block_bytes", ours.bytes() / launches},
                              {"read_only_gb_per_s", ceiling.rate().median / 1e9},
                              {"sm_clock_ghz", ghz},
                              {"runs", options_.replays}};
    const Fp16* best = nullptr;
    double best_us = 0;
    for (const Fp16& baseline : fp16) {
      const double time = baseline.graph.bytes() / baseline.graph.rate().median / fp16_launches;
      details[baseline.kernel + "_us"] = Microseconds(baseline.graph, fp16_launches);
      if (best == nullptr || time < best_us) best = &baseline, best_us = time;
    }
    const auto at_least = [](double x) {
      return x == 0 ? std::string("-") : absl::StrCat(">= ", x);
    };
    report.AddRatio(what, best_us / us, absl::StrCat("best fp16 (", best->kernel, ")"),
                    at_least(bar.over_fp16), details);
    report.AddRatio(what + ", bytes per second", ours.rate().median / ceiling.rate().median,
                    "reading the same blocks", at_least(bar.of_ceiling), std::move(details));
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
  app.add_option("--codecs", options.codecs, "Codecs, such as K2V2,NF4")->delimiter(',');
  app.add_flag("--alone", options.alone, "Also measure each kernel by itself");
  app.add_option("--out", options.out, "JSON file to write");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvferry::bench::Main(std::move(options), argc, argv);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}
