#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/core_clock.h"
#include "bench/report.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "kvcodec/half.h"

// Decode attention of the CPU backend on compressed blocks against the same attention on fp16
// blocks.
namespace kvferry::bench {
namespace {

using codec::BlockSpec;
using Clock = std::chrono::steady_clock;

struct Case {
  int q_heads, kv_heads, head_dim, tokens;
};

// Several caches of one shape, attended on in turn, so that each comes from DRAM as a model's
// layers do.
struct Caches {
  BlockSpec spec;
  std::vector<std::byte> memory;
  std::vector<std::vector<const std::byte*>> pages;  // [cache][block]
};

std::vector<std::uint16_t> MakeValues(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(count);
  for (std::uint16_t& value : values) value = codec::HalfFromFloat(normal(random));
  return values;
}

Caches MakeCaches(const codec::Backend& backend, const BlockSpec& spec, const Case& shape,
                  int caches) {
  Caches made{spec, {}, {}};
  const std::size_t page_bytes = codec::PageBytes(spec, shape.kv_heads);
  const int blocks = shape.tokens / codec::kBlockTokens;
  made.memory.resize(page_bytes * blocks * caches + 128);
  const auto address = reinterpret_cast<std::uintptr_t>(made.memory.data());
  std::byte* next = made.memory.data() + (128 - address % 128) % 128;
  const std::size_t side = std::size_t{64} * shape.kv_heads * shape.head_dim;
  // A few different pages are enough: the memory they lie in is what differs.
  constexpr int kKinds = 7;
  const std::vector<std::uint16_t> values = MakeValues(2 * side * kKinds, 3);
  for (int cache = 0; cache < caches; ++cache) {
    made.pages.emplace_back();
    for (int block = 0; block < blocks; ++block, next += page_bytes) {
      const std::uint16_t* k = values.data() + 2 * side * ((cache + block) % kKinds);
      const codec::KvView kv = {k,  k + side,       codec::Raw16::kFp16, shape.kv_heads,
                                64, shape.head_dim, 64 * shape.head_dim, shape.head_dim};
      if (!backend.Quantize(kv, spec, {}, {next, page_bytes}).ok()) std::abort();
      made.pages.back().push_back(next);
    }
  }
  return made;
}

void Attend(const codec::Backend& backend, const Caches& caches, int cache, const Case& shape,
            const std::vector<float>& q, std::vector<float>& out) {
  const codec::SequenceKv sequence = {{}, caches.pages[cache], {}};
  const codec::AttentionArgs args = {.spec = caches.spec,
                                     .q_heads = shape.q_heads,
                                     .kv_heads = shape.kv_heads,
                                     .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                                     .sequences = {&sequence, 1},
                                     .q = q.data(),
                                     .out = out.data()};
  if (!backend.DecodeAttention(args).ok()) std::abort();
}

// The SIMD answer against the scalar reference on a short cache.
bool Agrees(const codec::Backend& backend, const BlockSpec& spec, Case shape,
            const std::vector<float>& q) {
  shape.tokens = 512;
  const Caches caches = MakeCaches(backend, spec, shape, 1);
  const auto reference = codec::CreateCpuBackend({.scalar = true}).value();
  std::vector<float> got(q.size()), want(q.size());
  Attend(backend, caches, 0, shape, q, got);
  Attend(*reference, caches, 0, shape, q, want);
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error) <= 1e-3 * std::sqrt(norm);
}

// Seconds per call: of this core when it works alone, else by the wall clock.
double Time(const codec::Backend& backend, const Caches& caches, const Case& shape, int threads,
            const std::vector<float>& q, std::vector<float>& out) {
  const auto begin = Clock::now();
  const double core_begin = CoreSeconds();
  for (std::size_t cache = 0; cache < caches.pages.size(); ++cache) {
    Attend(backend, caches, static_cast<int>(cache), shape, q, out);
  }
  const double core = CoreSeconds() - core_begin;
  const double wall = std::chrono::duration<double>(Clock::now() - begin).count();
  return (threads == 1 ? core : wall) / static_cast<double>(caches.pages.size());
}

struct Row {
  const char* codec;
  Case shape;
  bool held;  // to the bars of the first milestone
};

constexpr Case kWide = {32, 8, 128, 8192}, kSmall = {9, 3, 64, 4096};
constexpr Row kRows[] = {{"kivi-2-g64", kWide, true},
                         {"kivi-4-g64", kWide, true},
                         {"kivi-2", kWide, false},
                         {"kivi-4", kWide, false},
                         {"kivi-k4v2-g64", kWide, false},
                         {"kivi-2-g64:k_bits=3,v_bits=3", kWide, false},
                         {"kivi-2-g64:k_bits=8,v_bits=8", kWide, false},
                         {"int8", kWide, false},
                         {"fp8", kWide, false},
                         {"nqkv-nf4", kWide, false},
                         {"lm3", kWide, false},
                         {"lm2", kWide, false},
                         {"kivi-2-g64", kSmall, false},
                         {"kivi-4-g64", kSmall, false},
                         {"kivi-4", kSmall, false}};

bool Measure(const Row& row, int threads, int runs, Report& report) {
  const Case& shape = row.shape;
  const auto backend = codec::CreateCpuBackend({.threads = threads}).value();
  const BlockSpec spec = codec::FindCodec(row.codec)->ForLayer(0, shape.head_dim).value();
  const BlockSpec fp16 = codec::FindCodec("fp16")->ForLayer(0, shape.head_dim).value();
  std::vector<float> q;
  for (const std::uint16_t value : MakeValues(std::size_t{1} * shape.q_heads * shape.head_dim, 5)) {
    q.push_back(codec::FloatFromHalf(value));
  }
  if (!Agrees(*backend, spec, shape, q)) {
    std::cerr << "attention_bench: " << row.codec << " differs from the reference\n";
    return false;
  }
  const double elements = 2.0 * shape.tokens * shape.kv_heads * shape.head_dim;
  const int caches = std::max(2, static_cast<int>(160e6 / (2 * elements)));
  const Caches ours = MakeCaches(*backend, spec, shape, caches);
  const Caches plain = MakeCaches(*backend, fp16, shape, caches);
  std::vector<float> out(q.size());
  std::vector<double> our_rate, plain_rate;
  for (int run = 0; run < runs; ++run) {  // in turn, so that a noisy machine slows both
    our_rate.push_back(elements / Time(*backend, ours, shape, threads, q, out));
    plain_rate.push_back(elements / Time(*backend, plain, shape, threads, q, out));
  }
  const Spread rate = Summarize(our_rate), base = Summarize(plain_rate);
  const std::string what =
      absl::StrCat("attention ", row.codec, " d", shape.head_dim, " ", shape.q_heads, "/",
                   shape.kv_heads, " ", shape.tokens / 1024, "k, ", backend->name(), " x", threads);
  const nlohmann::json details = {{"elements_per_s", ToJson(rate)},
                                  {"fp16_elements_per_s", ToJson(base)}};
  report.AddRatio(what, rate.median / base.median, "fp16 attention", row.held ? "> 1" : "none",
                  details);
  report.AddRatio(what, rate.median / 12e9, "12e9 K+V elements/s",
                  row.held && threads == 1 ? ">= 1 (avx2)" : "none", details);
  return true;
}

int Run(int argc, char** argv) {
  std::string out, target, only;
  int runs = 11, threads = 1;
  CLI::App app{"Decode attention of the CPU backend on compressed blocks, against fp16 blocks."};
  app.add_option("--out", out, "JSON file to write");
  app.add_option("--target", target,
                 "avx2, avx512 or avx512-vnni alone; default: avx2, then the best");
  app.add_option("--only", only, "this codec alone");
  app.add_option("--runs", runs, "timed runs per row")->check(CLI::Range(1, 1000));
  app.add_option("--threads", threads, "threads of one call")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  // The bars are for AVX2: without --target that is measured first, then the best there is.
  std::vector<std::string> targets = {target};
  const std::vector<std::string> known = codec::SimdTargets();
  if (target.empty() && known.size() > 1) targets = {known.back(), known.front()};
  Report report("attention", argc, argv);
  for (const std::string& name : targets) {
    if (const absl::Status status = codec::ForceSimdTarget(name); !status.ok()) {
      std::cerr << status.message() << '\n';
      return 2;
    }
    for (const Row& row : kRows) {
      if (!only.empty() && only != row.codec) continue;
      if (!Measure(row, threads, runs, report)) return 1;
    }
  }
  const absl::Status status = report.Write(out);
  if (!status.ok()) std::cerr << status.message() << '\n';
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Run(argc, argv); }
