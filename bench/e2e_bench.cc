// End to end with the demo model: bytes of a hand-off, overhead of the split, decode speed with and
// without compression, batching, a slow link between prefill and decode, and how soon a cancel has
// freed everything and a lost worker is noticed. Starts its own processes.
//   bench/run.sh e2e                                 all, into bench/results/e2e_*.json
//   build/release/bin/e2e_bench --only link --out x.json

#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/report.h"
#include "common/status_macros.h"
#include "kvcodec/codec.h"
#include "kvcodec/plan.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "rpc/convert.h"
#include "tests/integration/cluster.h"
#include "tests/integration/reference.h"

namespace kvferry::bench {
namespace {

using testing::Answer;
using testing::Cluster;
using testing::ClusterOptions;

struct Bench {
  Report* report = nullptr;
  int repeats = 5;
  double transformers_512 = 0, transformers_4096 = 0;  // tokens/s of the baseline in this run
};

// `count` ids of real text, so that attention sees what it sees in use.
absl::StatusOr<std::vector<std::int32_t>> PromptIds(int count) {
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<model::Tokenizer> tokenizer,
                       model::Tokenizer::Load(testing::DemoModelPath()));
  std::string text;
  for (int line = 0; static_cast<int>(text.size()) < count * 6; ++line) {
    absl::StrAppend(&text, "On day ", line, " the ferry carried ", line * 37 % 211,
                    " passengers and ", line * 13 % 59,
                    " cars across the strait, while the wind came from the west.\n");
  }
  KVF_ASSIGN_OR_RETURN(std::vector<std::int32_t> ids, tokenizer->Encode(text, false));
  if (static_cast<int>(ids.size()) < count)
    return absl::InternalError("the prompt text is too short");
  ids.resize(count);
  return ids;
}

absl::StatusOr<v1::GenerateRequest> Request(int prompt_tokens, int max_tokens) {
  KVF_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, PromptIds(prompt_tokens));
  v1::GenerateRequest request = testing::GreedyRequest("", max_tokens);
  request.mutable_tokens()->mutable_ids()->Add(ids.begin(), ids.end());
  return request;
}

absl::StatusOr<std::unique_ptr<Cluster>> StartCluster(const std::string& codec) {
  return Cluster::Start({.codec = codec});
}

absl::Status BenchBytes(Bench& bench) {
  constexpr int kTokens = 2000;
  for (const char* name : {"kivi-4-g64", "kivi-2-g64", "fp16"}) {
    KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster, StartCluster(name));
    KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(kTokens, 2));
    const Answer answer = cluster->Generate(request);
    KVF_RETURN_IF_ERROR(answer.status);
    const v1::HandoffStats& handoff = answer.finished.handoff();
    KVF_ASSIGN_OR_RETURN(const codec::Codec codec, codec::FindCodec(name));
    const codec::CacheGeometry geometry{30, 3, 64};
    KVF_ASSIGN_OR_RETURN(const std::size_t formula, codec::HandoffBytes(kTokens, codec, geometry));
    bench.report->AddRatio(absl::StrCat("bytes shipped, ", name, ", ", kTokens, " tokens"),
                           static_cast<double>(handoff.payload_bytes() + handoff.header_bytes()) /
                               static_cast<double>(handoff.raw16_bytes()),
                           "fp16 bytes of the same prompt", "the formula, headers <= 1 %",
                           {{"payload_bytes", handoff.payload_bytes()},
                            {"formula_bytes", formula},
                            {"header_bytes", handoff.header_bytes()},
                            {"raw16_bytes", handoff.raw16_bytes()},
                            {"chunks", handoff.chunks()},
                            {"payload_equals_formula", handoff.payload_bytes() == formula},
                            {"headers_share", static_cast<double>(handoff.header_bytes()) /
                                                  static_cast<double>(handoff.payload_bytes())}});
  }
  return absl::OkStatus();
}

absl::Status BenchSplit(Bench& bench) {
  constexpr int kTokens = 1000;
  KVF_ASSIGN_OR_RETURN(const std::vector<std::int32_t> ids, PromptIds(kTokens));
  std::vector<double> alone, split;
  {
    KVF_ASSIGN_OR_RETURN(const std::unique_ptr<model::Model> model,
                         model::Model::Load({.path = testing::DemoModelPath()}));
    for (int run = 0; run <= bench.repeats; ++run) {
      const absl::Time begin = absl::Now();
      KVF_RETURN_IF_ERROR(testing::GreedyReference(*model, ids, 1).status());
      if (run > 0) alone.push_back(absl::ToDoubleSeconds(absl::Now() - begin));
    }
  }
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster, StartCluster("kivi-4-g64"));
  KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(kTokens, 2));
  for (int run = 0; run <= bench.repeats; ++run) {
    const Answer answer = cluster->Generate(request);
    KVF_RETURN_IF_ERROR(answer.status);
    if (run > 0) split.push_back(rpc::ToSeconds(answer.finished.time_to_first_token()));
  }
  bench.report->AddRatio(
      "time to first token, 1,000-token prompt, three processes",
      Summarize(split).median / Summarize(alone).median, "one process", "<= 1.15",
      {{"split_s", ToJson(Summarize(split))}, {"alone_s", ToJson(Summarize(alone))}});
  return absl::OkStatus();
}

// Seconds per decode step of one stream after `prompt_tokens`.
absl::StatusOr<Spread> StepSeconds(Cluster& cluster, int prompt_tokens, int repeats) {
  KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(prompt_tokens, 65));
  std::vector<double> steps;
  for (int run = 0; run <= repeats; ++run) {
    const Answer answer = cluster.Generate(request);
    KVF_RETURN_IF_ERROR(answer.status);
    if (run > 0) steps.push_back(rpc::ToSeconds(answer.finished.time_per_token()));
  }
  return Summarize(steps);
}

absl::Status BenchDecode(Bench& bench) {
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<Cluster> cluster, StartCluster("fp16"));
  KVF_ASSIGN_OR_RETURN(const Spread raw, StepSeconds(*cluster, 4096, bench.repeats));
  cluster.reset();
  KVF_ASSIGN_OR_RETURN(cluster, StartCluster("kivi-4-g64"));
  KVF_ASSIGN_OR_RETURN(const Spread compressed, StepSeconds(*cluster, 4096, bench.repeats));
  KVF_ASSIGN_OR_RETURN(const Spread shorter, StepSeconds(*cluster, 512, bench.repeats));
  bench.report->AddRatio("decode step at 4k context, kivi-4-g64", compressed.median / raw.median,
                         "fp16 codec", "<= 1.0",
                         {{"kivi_4_g64_s", ToJson(compressed)}, {"fp16_s", ToJson(raw)}});
  if (bench.transformers_512 > 0) {
    bench.report->AddRatio(
        "one stream, tokens/s after 512 tokens", 1 / shorter.median / bench.transformers_512,
        "transformers fp32", ">= 1.5",
        {{"step_s", ToJson(shorter)}, {"transformers_tokens_per_s", bench.transformers_512}});
  }
  if (bench.transformers_4096 > 0) {
    bench.report->AddRatio(
        "one stream, tokens/s after 4,096 tokens", 1 / compressed.median / bench.transformers_4096,
        "transformers fp32", ">= 2.5",
        {{"step_s", ToJson(compressed)}, {"transformers_tokens_per_s", bench.transformers_4096}});
  }
  return absl::OkStatus();
}

// Tokens per second of `streams` requests that run at once, the time before the last first token
// left out.
absl::StatusOr<double> TokensPerSecond(Cluster& cluster, int streams) {
  KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(64, 384));
  std::vector<std::future<std::pair<Answer, std::vector<absl::Time>>>> answers;
  for (int stream = 0; stream < streams; ++stream) {
    answers.push_back(std::async(std::launch::async, [&] {
      std::vector<absl::Time> arrivals;
      Answer answer = cluster.Generate(request, [&](const v1::GenerateEvent& event) {
        if (event.has_tokens())
          arrivals.insert(arrivals.end(), event.tokens().ids_size(), absl::Now());
        return true;
      });
      return std::make_pair(std::move(answer), std::move(arrivals));
    }));
  }
  absl::Time all_started = absl::InfinitePast(), first_ended = absl::InfiniteFuture();
  std::vector<absl::Time> tokens;
  for (auto& future : answers) {
    auto [answer, arrivals] = future.get();
    KVF_RETURN_IF_ERROR(answer.status);
    all_started = std::max(all_started, arrivals.front());
    first_ended = std::min(first_ended, arrivals.back());
    tokens.insert(tokens.end(), arrivals.begin(), arrivals.end());
  }
  const auto count = std::count_if(tokens.begin(), tokens.end(), [&](absl::Time t) {
    return t > all_started && t <= first_ended;
  });
  if (first_ended <= all_started) return absl::InternalError("the streams did not run at once");
  return static_cast<double>(count) / absl::ToDoubleSeconds(first_ended - all_started);
}

absl::Status BenchBatch(Bench& bench) {
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster, StartCluster("kivi-4-g64"));
  std::vector<double> one, many;
  for (int run = 0; run <= bench.repeats; ++run) {
    KVF_ASSIGN_OR_RETURN(const double alone, TokensPerSecond(*cluster, 1));
    KVF_ASSIGN_OR_RETURN(const double together, TokensPerSecond(*cluster, 16));
    if (run == 0) continue;
    one.push_back(alone);
    many.push_back(together);
  }
  bench.report->AddRatio("16 streams at once, tokens/s",
                         Summarize(many).median / Summarize(one).median, "one stream", ">= 3",
                         {{"sixteen_tokens_per_s", ToJson(Summarize(many))},
                          {"one_tokens_per_s", ToJson(Summarize(one))}});
  return absl::OkStatus();
}

// End of prefill (the first token, which prefill samples) to the second token, over a link of 20
// Mbit/s.
absl::Status BenchLink(Bench& bench) {
  std::map<std::string, Spread> waits;
  for (const char* name : {"fp16", "kivi-2-g64"}) {
    // Two small chunks under way fill this link; more would only queue.
    KVF_ASSIGN_OR_RETURN(
        const std::unique_ptr<Cluster> cluster,
        Cluster::Start({.namespaces = true,
                        .codec = name,
                        .set_decode = {"landing_slot_bytes=262144", "credits_per_transfer=2"}}));
    KVF_RETURN_IF_ERROR(cluster->network()->ShapeLink("prefill-0", 20));
    KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(4000, 3));
    std::vector<double> samples;
    for (int run = 0; run < std::max(1, bench.repeats / 2); ++run) {
      std::vector<absl::Time> arrivals;
      const Answer answer = cluster->Generate(request, [&](const v1::GenerateEvent& event) {
        if (event.has_tokens())
          arrivals.insert(arrivals.end(), event.tokens().ids_size(), absl::Now());
        return true;
      });
      KVF_RETURN_IF_ERROR(answer.status);
      samples.push_back(absl::ToDoubleSeconds(arrivals.at(1) - arrivals.at(0)));
    }
    waits[name] = Summarize(samples);
  }
  bench.report->AddRatio(
      "20 Mbit/s link, 4,000 tokens, end of prefill to second token, kivi-2-g64",
      waits["kivi-2-g64"].median / waits["fp16"].median, "fp16 codec", "<= 0.2",
      {{"kivi_2_g64_s", ToJson(waits["kivi-2-g64"])}, {"fp16_s", ToJson(waits["fp16"])}});
  return absl::OkStatus();
}

// When the client cancels: `after` has passed since it saw `events` events.
struct CancelPoint {
  const char* name;
  int prompt_tokens, events;
  absl::Duration after;
};

// From the cancel of a request to the moment when no page, landing slot or transfer of it is left.
absl::StatusOr<Spread> CancelSeconds(Cluster& cluster, const CancelPoint& point, int repeats) {
  KVF_ASSIGN_OR_RETURN(const v1::GenerateRequest request, Request(point.prompt_tokens, 200));
  std::vector<double> samples;
  for (int run = 0; run < repeats; ++run) {
    absl::Time cancelled;
    int seen = 0;
    const Answer answer = cluster.Generate(request, [&](const v1::GenerateEvent&) {
      if (++seen < point.events) return true;
      absl::SleepFor(point.after);
      cancelled = absl::Now();
      return false;
    });
    if (answer.status.code() != absl::StatusCode::kCancelled) return answer.status;
    KVF_RETURN_IF_ERROR(cluster.AwaitAllFree(absl::Seconds(10)));
    samples.push_back(absl::ToDoubleSeconds(absl::Now() - cancelled));
  }
  return Summarize(samples);
}

absl::Status BenchCancel(Bench& bench) {
  // The first event comes before prefill begins. 4,000 tokens are many model chunks: after a second
  // some have been shipped and some not.
  constexpr int kRuns = 20;
  const CancelPoint points[] = {{"before prefill", 200, 1, absl::ZeroDuration()},
                                {"in prefill and hand-off", 4000, 1, absl::Seconds(1)},
                                {"in decode", 200, 9, absl::ZeroDuration()}};
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster, StartCluster("kivi-4-g64"));
  for (const CancelPoint& point : points) {
    KVF_ASSIGN_OR_RETURN(const Spread seconds, CancelSeconds(*cluster, point, kRuns));
    bench.report->AddRatio(
        absl::StrCat("cancel ", point.name, " to everything free, slowest of ", kRuns),
        seconds.max / 0.1, "100 ms", "<= 1.0", {{"seconds", ToJson(seconds)}});
  }
  return absl::OkStatus();
}

// How a worker, by its name, is lost, and how it comes back.
struct LossWay {
  const char* name;
  std::function<absl::Status(Cluster&, const std::string&)> lose, restore;
};

std::vector<LossWay> LossWays() {
  const auto signal = [](int number) {
    return [number](Cluster& cluster, const std::string& worker) {
      cluster.Signal(worker, number);
      return absl::OkStatus();
    };
  };
  const auto link = [](bool up) {
    return [up](Cluster& cluster, const std::string& worker) {
      return cluster.network()->SetLink(worker, up);
    };
  };
  const auto restart = [](Cluster& cluster, const std::string& worker) {
    return cluster.Restart(worker);
  };
  return {{"killed", signal(SIGKILL), restart},
          {"stopped", signal(SIGSTOP), signal(SIGCONT)},
          {"partitioned", link(false), link(true)}};
}

// Until the router lists so many workers.
absl::Status AwaitListed(Cluster& cluster, int workers) {
  return cluster.AwaitRouter(absl::Seconds(60), [workers](const v1::GetStateResponse& state) {
    return state.workers_size() == workers;
  });
}

// From the loss of an attached worker to the moment when the router has it no more, and so runs
// what it held elsewhere.
absl::Status BenchLoss(Bench& bench) {
  constexpr int kRuns = 5;
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Cluster> cluster,
                       Cluster::Start({.namespaces = true, .codec = "kivi-4-g64"}));
  for (const char* worker : {"prefill-0", "decode-0"}) {
    for (const LossWay& way : LossWays()) {
      std::vector<double> samples;
      for (int run = 0; run < kRuns; ++run) {
        KVF_RETURN_IF_ERROR(AwaitListed(*cluster, 2));
        const absl::Time lost = absl::Now();
        KVF_RETURN_IF_ERROR(way.lose(*cluster, worker));
        KVF_RETURN_IF_ERROR(AwaitListed(*cluster, 1));
        samples.push_back(absl::ToDoubleSeconds(absl::Now() - lost));
        KVF_RETURN_IF_ERROR(way.restore(*cluster, worker));
      }
      const Spread seconds = Summarize(samples);
      bench.report->AddRatio(
          absl::StrCat(worker, " ", way.name, " to noticed by the router, slowest of ", kRuns),
          seconds.max / 2, "2 s", "<= 1.0", {{"seconds", ToJson(seconds)}});
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("End-to-end measurements with the demo model");
  std::string out;
  std::vector<std::string> only;
  Bench bench;
  app.add_option("--out", out, "JSON file to write");
  app.add_option("--only", only, "bytes, split, decode, batch, link, cancel, loss [all]");
  app.add_option("--repeats", bench.repeats)->capture_default_str();
  app.add_option("--transformers-512", bench.transformers_512,
                 "tokens/s of bench/transformers_baseline.py in the same run");
  app.add_option("--transformers-4096", bench.transformers_4096, "the same after 4,096 tokens");
  CLI11_PARSE(app, argc, argv);
  Report report("e2e", argc, argv);
  bench.report = &report;
  const std::vector<std::pair<std::string, std::function<absl::Status(Bench&)>>> parts = {
      {"bytes", BenchBytes}, {"split", BenchSplit}, {"decode", BenchDecode},
      {"batch", BenchBatch}, {"link", BenchLink},   {"cancel", BenchCancel},
      {"loss", BenchLoss}};
  for (const auto& [name, run] : parts) {
    if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) continue;
    if (const absl::Status done = run(bench); !done.ok()) {
      std::cerr << name << ": " << done << '\n';
      return 1;
    }
  }
  const absl::Status written = report.Write(out);
  if (!written.ok()) std::cerr << written << '\n';
  return written.ok() ? 0 : 1;
}

}  // namespace
}  // namespace kvferry::bench

int main(int argc, char** argv) { return kvferry::bench::Main(argc, argv); }
