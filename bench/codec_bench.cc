#include <CLI/CLI.hpp>
#include <cstring>
#include <iostream>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/core_clock.h"
#include "bench/report.h"
#include "kvcodec/cpu/cpu_backend.h"

// How fast the CPU backend quantizes, one core, input from DRAM, against memcpy of the same input
// bytes.
namespace kvferry::bench {
namespace {

using codec::BlockSpec;

// Pages of bf16 K and V, far more than any cache holds: [page][K, V][kv_heads][64][head_dim].
struct Input {
  int kv_heads, head_dim, pages;
  std::vector<std::uint16_t> values;

  std::size_t side() const { return std::size_t{64} * kv_heads * head_dim; }
  codec::KvView page(int i) const {
    const std::uint16_t* k = values.data() + 2 * side() * i;
    return {k, k + side(), codec::Raw16::kBf16, kv_heads, 64, head_dim, 64 * head_dim, head_dim};
  }
};

Input MakeInput(int kv_heads, int head_dim, std::size_t bytes) {
  Input input{kv_heads, head_dim, 0, {}};
  input.pages = static_cast<int>(bytes / (4 * input.side()));
  input.values.resize(2 * input.side() * input.pages);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> sample(1 << 16);
  for (std::uint16_t& value : sample) {
    const float x = normal(random);
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    value = static_cast<std::uint16_t>(bits >> 16);
  }
  for (std::size_t i = 0; i < input.values.size(); ++i) {
    input.values[i] = sample[(i + i / 65537) % sample.size()];
  }
  return input;
}

struct AlignedBytes {
  explicit AlignedBytes(std::size_t bytes) : memory(bytes + 128) {}
  std::byte* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    return memory.data() + (128 - address % 128) % 128;
  }
  std::vector<std::byte> memory;
};

bool SameAsReference(const codec::Backend& backend, const Input& input, const BlockSpec& spec) {
  const auto reference = codec::CreateCpuBackend({.scalar = true}).value();
  const std::size_t bytes = codec::PageBytes(spec, input.kv_heads);
  AlignedBytes a(bytes), b(bytes);
  for (int i = 0; i < 2; ++i) {
    if (!backend.Quantize(input.page(i), spec, {}, {a.data(), bytes}).ok() ||
        !reference->Quantize(input.page(i), spec, {}, {b.data(), bytes}).ok() ||
        std::memcmp(a.data(), b.data(), bytes) != 0) {
      return false;
    }
  }
  return true;
}

struct Rates {
  std::vector<double> quantize, copy;  // input bytes per second
};

// Copy and quantize take turns, so that a noisy machine slows both.
Rates Measure(const codec::Backend& backend, const Input& input, const BlockSpec& spec, int runs) {
  const std::size_t page_bytes = codec::PageBytes(spec, input.kv_heads);
  const std::size_t input_bytes = input.values.size() * 2;
  AlignedBytes out(page_bytes * input.pages), copy(input_bytes);
  std::memset(out.data(), 1, page_bytes * input.pages);
  std::memset(copy.data(), 1, input_bytes);
  Rates rates;
  for (int run = 0; run < runs; ++run) {
    double begin = CoreSeconds();
    std::memcpy(copy.data(), input.values.data(), input_bytes);
    rates.copy.push_back(static_cast<double>(input_bytes) / (CoreSeconds() - begin));
    begin = CoreSeconds();
    for (int i = 0; i < input.pages; ++i) {
      if (!backend.Quantize(input.page(i), spec, {}, {out.data() + page_bytes * i, page_bytes})
               .ok()) {
        std::cerr << "codec_bench: quantize failed\n";
        std::exit(1);
      }
    }
    rates.quantize.push_back(static_cast<double>(input_bytes) / (CoreSeconds() - begin));
  }
  return rates;
}

struct Row {
  const char* codec;
  const char* bar;
};
constexpr Row kRows[] = {{"kivi-2-g64", ">= 0.5"}, {"kivi-4-g64", ">= 0.5"},
                         {"kivi-2", ">= 0.5"},     {"kivi-4", ">= 0.5"},
                         {"int8", "none"},         {"kivi-2-g64:k_bits=3,v_bits=3", "none"},
                         {"fp8", "none"},          {"nqkv-nf4", "none"},
                         {"lm3", "none"},          {"lm2", "none"}};

int Run(int argc, char** argv) {
  std::string out, target, only;
  int runs = 11, megabytes = 192;
  CLI::App app{"Quantize rate of the CPU backend on one core, as a share of memcpy."};
  app.add_option("--out", out, "JSON file to write");
  app.add_option("--target", target, "SIMD target instead of the best: avx2, avx512, avx512-vnni");
  app.add_option("--only", only, "this codec alone");
  app.add_option("--runs", runs, "timed runs per row")->check(CLI::Range(1, 1000));
  app.add_option("--megabytes", megabytes, "input size")->check(CLI::Range(1, 4096));
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = codec::ForceSimdTarget(target); !status.ok()) {
    std::cerr << status.message() << '\n';
    return 2;
  }
  const auto backend = codec::CreateCpuBackend({}).value();
  Report report("codec", argc, argv);
  for (const auto& [kv_heads, head_dim] : {std::pair{8, 128}, std::pair{3, 64}}) {
    const Input input = MakeInput(kv_heads, head_dim, static_cast<std::size_t>(megabytes) << 20);
    for (const Row& row : kRows) {
      const char* name = row.codec;
      if (!only.empty() && only != name) continue;
      const BlockSpec spec = codec::FindCodec(name)->ForLayer(0, head_dim).value();
      if (!SameAsReference(*backend, input, spec)) {
        std::cerr << "codec_bench: " << name << " differs from the reference\n";
        return 1;
      }
      const Rates rates = Measure(*backend, input, spec, runs);
      const Spread quantize = Summarize(rates.quantize), copy = Summarize(rates.copy);
      report.AddRatio(absl::StrCat("quantize ", name, " d", head_dim, " bf16, ", backend->name()),
                      quantize.median / copy.median, "memcpy of the input", row.bar,
                      {{"quantize_input_bytes_per_s", ToJson(quantize)},
                       {"memcpy_bytes_per_s", ToJson(copy)},
                       {"input_bytes", input.values.size() * 2}});
    }
  }
  const absl::Status status = report.Write(out);
  if (!status.ok()) std::cerr << status.message() << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Run(argc, argv); }
