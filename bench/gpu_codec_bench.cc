// The kernels around the compressed block on a GPU:
//   gpu_test.sh --bench gpu_codec      in a bundle (scripts/bundle.sh), into its results/

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/gpu_graph.h"
#include "bench/report.h"
#include "common/status_macros.h"
#include "kernels/adopt_chunk.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/status.h"
#include "kernels/quantize_block.h"
#include "kvcodec/codec.h"
#include "kvcodec/half.h"

// The kernels around the compressed block against a device-to-device copy of the same run: bytes
// touched per second. Every launch of a graph works on other memory, more than three times the L2
// in all, so that nothing is found there.
namespace kvferry::bench {
namespace {

using kernels::DeviceBuffer;
using kernels::Stream;

constexpr int kTokens = 32768, kHeads = 8, kHeadDim = 128;
constexpr std::uint32_t kChunkBytes = 8 << 20;

struct Options {
  int replays = 60;
  std::string out;
};

// Random K and V of one layer.
struct Layer {
  DeviceBuffer k, v, out, items, residues, fault;
  int pages = 0, chunks = 0;
};

class Bench {
 public:
  Bench(Options options, Stream stream, kernels::DeviceCheckTables tables,
        kernels::DeviceInfo device)
      : options_(std::move(options)),
        stream_(std::move(stream)),
        tables_(std::move(tables)),
        device_(std::move(device)) {}

  absl::Status Run(Report& report) {
    KVF_RETURN_IF_ERROR(MakeCopy());
    for (const int bits : {2, 4}) {
      const codec::BlockSpec spec = {.kind = codec::BlockKind::kScalar,
                                     .head_dim = kHeadDim,
                                     .k_bits = bits,
                                     .v_bits = bits,
                                     .k_group_tokens = 64,
                                     .v_group_channels = 128};
      KVF_RETURN_IF_ERROR(MeasureQuantize(spec, report));
      KVF_RETURN_IF_ERROR(MeasureLongQuantize(spec, report));
      KVF_RETURN_IF_ERROR(MeasureAdopt(spec, report));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status MakeCopy() {
    constexpr std::size_t kBytes = std::size_t{256} << 20;
    KVF_ASSIGN_OR_RETURN(copy_from_, DeviceBuffer::Allocate(kBytes));
    KVF_ASSIGN_OR_RETURN(copy_to_, DeviceBuffer::Allocate(kBytes));
    KVF_RETURN_IF_ERROR(FillRandom(copy_from_, 5));
    return absl::OkStatus();
  }
  absl::StatusOr<Graph> CopyGraph() {
    return Graph::Capture(4.0 * copy_to_.bytes(), stream_, [&]() -> absl::Status {
      for (int i = 0; i < 2; ++i) {
        KVF_RETURN_IF_ERROR(
            kernels::CopyAsync(copy_to_.data(), copy_from_.data(), copy_to_.bytes(), stream_));
      }
      return absl::OkStatus();
    });
  }

  // One copy for each layer, which reads and writes as many bytes as its quantization touches.
  absl::StatusOr<Graph> EqualCopies(std::span<const Layer> layers) {
    const double bytes = TouchedBytes(layers);
    const std::size_t half = static_cast<std::size_t>(bytes) / layers.size() / 2;
    if (half * layers.size() > copy_to_.bytes()) {
      return absl::InternalError("layers of more bytes than the copied buffer has");
    }
    return Graph::Capture(bytes, stream_, [&]() -> absl::Status {
      for (std::size_t i = 0; i < layers.size(); ++i) {
        KVF_RETURN_IF_ERROR(kernels::CopyAsync(copy_to_.data() + i * half,
                                               copy_from_.data() + i * half, half, stream_));
      }
      return absl::OkStatus();
    });
  }

  // bf16 normals with outlier channels in steps of 16; a pattern of 4 Mi values from another place
  // each time.
  absl::Status FillRandom(const DeviceBuffer& buffer, std::uint32_t seed) {
    if (values_.empty()) {
      std::mt19937 random(1);
      std::normal_distribution<float> normal;
      for (int i = 0; i < 8 << 20; ++i) {
        values_.push_back(codec::Bf16FromFloat(normal(random) * (i % 16 == 3 ? 6.0f : 1.0f)));
      }
    }
    std::mt19937 random(seed);
    const std::size_t piece = std::size_t{8} << 20;
    for (std::size_t at = 0; at < buffer.bytes(); at += piece) {
      const std::size_t bytes = std::min(piece, buffer.bytes() - at);
      const std::size_t from = random() % (values_.size() / 2) / 128 * 128;
      KVF_RETURN_IF_ERROR(
          kernels::CopyAsync(buffer.data() + at, values_.data() + from, bytes, stream_));
    }
    return stream_.Synchronize();
  }

  absl::StatusOr<Layer> MakeLayer(const codec::BlockSpec& spec, int tokens, std::uint32_t seed) {
    const std::size_t side = std::size_t{2} * tokens * kHeads * kHeadDim;
    const std::size_t page = codec::PageBytes(spec, kHeads);
    const int pages = tokens / codec::kBlockTokens;
    const int pages_per_chunk = static_cast<int>(kChunkBytes / page);
    Layer layer;
    layer.pages = pages;
    layer.chunks = (pages + pages_per_chunk - 1) / pages_per_chunk;
    KVF_ASSIGN_OR_RETURN(layer.k, DeviceBuffer::Allocate(side));
    KVF_ASSIGN_OR_RETURN(layer.v, DeviceBuffer::Allocate(side));
    KVF_ASSIGN_OR_RETURN(layer.out, DeviceBuffer::Allocate(page * pages));
    KVF_ASSIGN_OR_RETURN(layer.items,
                         DeviceBuffer::Allocate(pages * sizeof(kernels::QuantizeItem)));
    KVF_ASSIGN_OR_RETURN(layer.residues, DeviceBuffer::Allocate(layer.chunks * 4));
    KVF_ASSIGN_OR_RETURN(layer.fault, DeviceBuffer::Allocate(8));
    KVF_RETURN_IF_ERROR(FillRandom(layer.k, seed));
    KVF_RETURN_IF_ERROR(FillRandom(layer.v, seed + 1));
    std::vector<kernels::QuantizeItem> items;
    for (int i = 0; i < pages; ++i) {
      const int chunk = i / pages_per_chunk;
      const int last = std::min((chunk + 1) * pages_per_chunk, pages) - 1;
      items.push_back({.k = layer.k.as<std::uint16_t>(),
                       .v = layer.v.as<std::uint16_t>(),
                       .page = layer.out.data() + page * i,
                       .head_stride = std::int64_t{tokens} * kHeadDim,
                       .token_stride = kHeadDim,
                       .first_row = i * codec::kBlockTokens,
                       .k_bits = static_cast<std::uint8_t>(spec.k_bits),
                       .v_bits = static_cast<std::uint8_t>(spec.v_bits),
                       .chunk = static_cast<std::uint32_t>(chunk),
                       .after_units = static_cast<std::uint32_t>((last - i) * page / 16)});
    }
    KVF_RETURN_IF_ERROR(
        kernels::CopyAsync(layer.items.data(), items.data(), layer.items.bytes(), stream_));
    KVF_RETURN_IF_ERROR(kernels::FillAsync(layer.fault.data(), std::byte{0xff}, 8, stream_));
    KVF_RETURN_IF_ERROR(stream_.Synchronize());
    return layer;
  }

  // The words that residues are added to are not cleared in between: those of a caller come zeroed
  // with the items.
  absl::Status LaunchQuantize(const Layer& layer, const codec::BlockSpec& spec, bool check) {
    KVF_ASSIGN_OR_RETURN(kernels::QuantizeParams params,
                         kernels::QuantizeParamsOf(spec, codec::Raw16::kBf16, 0, kHeads));
    params.items = layer.items.as<kernels::QuantizeItem>();
    params.max_items = layer.pages;
    params.first_fault = layer.fault.as<std::uint64_t>();
    if (check) {
      params.residues = layer.residues.as<std::uint32_t>();
      params.tables = tables_.get();
    }
    return kernels::LaunchQuantizeBlock(params, stream_);
  }

  // Layers over which it takes turns, more than the L2 holds.
  absl::StatusOr<std::vector<Layer>> MakeLayers(const codec::BlockSpec& spec, int tokens) {
    std::vector<Layer> layers;
    for (std::uint32_t i = 0; i < 3; ++i) {
      KVF_ASSIGN_OR_RETURN(Layer layer, MakeLayer(spec, tokens, 10 * i + 1));
      layers.push_back(std::move(layer));
    }
    return layers;
  }
  static double TouchedBytes(std::span<const Layer> layers) {
    const Layer& one = layers[0];
    return static_cast<double>(layers.size() * (one.k.bytes() + one.v.bytes() + one.out.bytes()));
  }
  absl::StatusOr<Graph> QuantizeGraph(std::span<const Layer> layers, const codec::BlockSpec& spec,
                                      bool check) {
    return Graph::Capture(TouchedBytes(layers), stream_, [&]() -> absl::Status {
      for (const Layer& layer : layers) KVF_RETURN_IF_ERROR(LaunchQuantize(layer, spec, check));
      return absl::OkStatus();
    });
  }

  absl::Status MeasureQuantize(const codec::BlockSpec& spec, Report& report) {
    KVF_ASSIGN_OR_RETURN(const std::vector<Layer> layers, MakeLayers(spec, kTokens));
    KVF_ASSIGN_OR_RETURN(Graph checked, QuantizeGraph(layers, spec, true));
    KVF_ASSIGN_OR_RETURN(Graph unchecked, QuantizeGraph(layers, spec, false));
    KVF_ASSIGN_OR_RETURN(Graph copy, CopyGraph());
    KVF_ASSIGN_OR_RETURN(Graph equal, EqualCopies(layers));
    KVF_RETURN_IF_ERROR(
        Interleave(stream_, options_.replays, {&checked, &copy, &unchecked, &equal}));
    const std::string what =
        absl::StrCat("quantize + pack + CRC32C, ", spec.k_bits, " bit, 32k tokens x 8 heads");
    Add(what, checked, copy, ">= 0.85", report);
    Add(absl::StrCat(what, ", over copies of as many bytes"), checked, equal, "-", report,
        "device-to-device copies, each of the bytes of one launch");
    Add(absl::StrCat("quantize + pack without a checksum, ", spec.k_bits, " bit"), unchecked, copy,
        "-", report);
    return absl::OkStatus();
  }

  // The same where a launch begins and ends less often.
  absl::Status MeasureLongQuantize(const codec::BlockSpec& spec, Report& report) {
    KVF_ASSIGN_OR_RETURN(const std::vector<Layer> layers, MakeLayers(spec, 4 * kTokens));
    KVF_ASSIGN_OR_RETURN(Graph checked, QuantizeGraph(layers, spec, true));
    KVF_ASSIGN_OR_RETURN(Graph copy, CopyGraph());
    KVF_RETURN_IF_ERROR(Interleave(stream_, options_.replays, {&checked, &copy}));
    Add(absl::StrCat("quantize + pack + CRC32C, ", spec.k_bits, " bit, 128k tokens x 8 heads"),
        checked, copy, "-", report);
    return absl::OkStatus();
  }

  // Chunks of 8 MiB whose pages lie in any order in a pool.
  absl::Status MeasureAdopt(const codec::BlockSpec& spec, Report& report) {
    const std::size_t page = codec::PageBytes(spec, kHeads);
    const std::size_t per_chunk = kChunkBytes / page, chunks = kernels::kMaxAdoptParts;
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer slots, DeviceBuffer::Allocate(chunks * kChunkBytes));
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer pool,
                         DeviceBuffer::Allocate(chunks * per_chunk * page));
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer list,
                         DeviceBuffer::Allocate(chunks * per_chunk * sizeof(std::byte*)));
    KVF_ASSIGN_OR_RETURN(const DeviceBuffer residues, DeviceBuffer::Allocate(chunks * 4));
    KVF_RETURN_IF_ERROR(FillRandom(slots, 77));
    std::vector<std::byte*> pages;
    for (std::size_t i = 0; i < chunks * per_chunk; ++i) pages.push_back(pool.data() + i * page);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(4));
    KVF_RETURN_IF_ERROR(kernels::CopyAsync(list.data(), pages.data(), list.bytes(), stream_));
    KVF_RETURN_IF_ERROR(stream_.Synchronize());
    kernels::AdoptParams all = {.part_count = static_cast<int>(chunks),
                                .residues = residues.as<std::uint32_t>(),
                                .tables = tables_.get()};
    for (std::size_t i = 0; i < chunks; ++i) {
      all.parts[i] = {.payload = slots.data() + i * kChunkBytes,
                      .pages = list.as<std::byte*>() + i * per_chunk,
                      .bytes = static_cast<std::uint32_t>(per_chunk * page),
                      .page_bytes = static_cast<std::uint32_t>(page),
                      .residue = static_cast<std::uint32_t>(i)};
    }
    const double bytes = 2.0 * static_cast<double>(pool.bytes());
    KVF_ASSIGN_OR_RETURN(Graph together, Graph::Capture(bytes, stream_, [&]() -> absl::Status {
                           return kernels::LaunchAdoptChunk(all, stream_);
                         }));
    KVF_ASSIGN_OR_RETURN(Graph single, Graph::Capture(bytes, stream_, [&]() -> absl::Status {
                           for (int i = 0; i < all.part_count; ++i) {
                             kernels::AdoptParams one = all;
                             one.part_count = 1;
                             one.parts[0] = all.parts[i];
                             KVF_RETURN_IF_ERROR(kernels::LaunchAdoptChunk(one, stream_));
                           }
                           return absl::OkStatus();
                         }));
    KVF_ASSIGN_OR_RETURN(Graph copy, CopyGraph());
    KVF_RETURN_IF_ERROR(Interleave(stream_, options_.replays, {&together, &copy, &single}));
    const std::string what = absl::StrCat(", pages of ", page, " bytes");
    Add(absl::StrCat("adopt + check, 32 chunks of 8 MiB in a launch", what), together, copy,
        ">= 0.7", report);
    Add(absl::StrCat("adopt + check, a launch for each chunk", what), single, copy, ">= 0.7",
        report);
    return absl::OkStatus();
  }

  void Add(const std::string& what, const Graph& graph, const Graph& copy, const std::string& bar,
           Report& report, const std::string& baseline = "device-to-device copy of 256 MiB") {
    const auto rate = [](const Graph& of) {
      const Quantiles q = of.rate();
      return nlohmann::json{{"p10", q.p10 / 1e9}, {"median", q.median / 1e9}, {"p90", q.p90 / 1e9}};
    };
    report.AddRatio(what, graph.rate().median / copy.rate().median, baseline, bar,
                    {{"gpu", device_.name},
                     {"gb_per_s", rate(graph)},
                     {"copy_gb_per_s", rate(copy)},
                     {"bytes_touched", graph.bytes()},
                     {"us", graph.bytes() / graph.rate().median * 1e6},
                     {"runs", options_.replays}});
  }

  Options options_;
  Stream stream_;
  kernels::DeviceCheckTables tables_;
  kernels::DeviceInfo device_;
  DeviceBuffer copy_from_, copy_to_;
  std::vector<std::uint16_t> values_;
};

absl::Status Main(Options options, int argc, char** argv) {
  KVF_ASSIGN_OR_RETURN(kernels::DeviceInfo device, kernels::GetDevice(0));
  KVF_RETURN_IF_ERROR(kernels::UseDevice(0));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  KVF_ASSIGN_OR_RETURN(kernels::DeviceCheckTables tables,
                       kernels::DeviceCheckTables::Create(stream));
  const std::string out = options.out;
  Report report("gpu_codec", argc, argv);
  Bench bench(std::move(options), std::move(stream), std::move(tables), std::move(device));
  KVF_RETURN_IF_ERROR(bench.Run(report));
  return report.Write(out);
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) {
  CLI::App app("Quantize, checksum and adopt on a GPU, against a device-to-device copy");
  kvferry::bench::Options options;
  app.add_option("--replays", options.replays, "Samples per row");
  app.add_option("--out", options.out, "JSON file to write");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvferry::bench::Main(std::move(options), argc, argv);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}
