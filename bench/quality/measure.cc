#include "bench/quality/measure.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/quality/cache_batch.h"
#include "bench/quality/compare.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace kvferry::bench {
namespace {

// Steps of the probe between two comparisons: neighbours say nearly the same.
constexpr int kProbeStride = 8;
// Tokens per call when the exact model scores what follows the prompt.
constexpr std::size_t kScoreTokens = 256;

std::span<const float> Row(std::span<const float> logits, std::size_t row, std::size_t width) {
  return logits.subspan(row * width, width);
}

bool IsLossy(const codec::Codec& codec) { return codec.kind != codec::BlockKind::kRaw16; }

// The same window without loss: what the codec is to be told apart from.
absl::StatusOr<codec::Codec> ExactCodec(const codec::Codec& codec) {
  KVF_ASSIGN_OR_RETURN(codec::Codec exact,
                       codec::FindCodec(codec.raw_type == codec::Raw16::kBf16 ? "bf16" : "fp16"));
  exact.window = codec.window;
  return exact;
}

std::string TraceKey(const codec::Codec& codec) {
  return absl::StrCat(static_cast<int>(codec.raw_type), ",", codec.window.sinks, ",",
                      codec.window.recent);
}

std::vector<std::int32_t> TokensAt(std::span<const Passage> passages, std::size_t index) {
  std::vector<std::int32_t> tokens;
  for (const Passage& passage : passages) tokens.push_back(passage.tokens[index]);
  return tokens;
}

}  // namespace

// The probe looks at both stores with the same queries, the other two run on the lossy one alone.
// Without an exact store a trace takes its place.
struct Measure::Caches {
  const std::string& name() const { return store->cache().codec().name; }

  std::unique_ptr<DeviceStore> exact_store, store;
  std::unique_ptr<CacheBatch> exact_probe, probe, greedy, teacher;
};

void Measure::Trajectory::Add(std::span<const float> row) {
  tokens.push_back(LikeliestToken(row));
  logits.insert(logits.end(), row.begin(), row.end());
}

absl::StatusOr<Measure> Measure::Create(Device& device, const MeasureOptions& options,
                                        Progress progress) {
  const auto refuse = [](const char* what, int value, int least, int most) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is ", value, ", allowed are ", least, " to ", most));
  };
  const int context = device.model().config().max_context_tokens;
  if (options.prompt_tokens < 1 || options.prompt_tokens > context - 2) {
    return refuse("prompt_tokens", options.prompt_tokens, 1, context - 2);
  }
  const int most = context - options.prompt_tokens;
  if (options.decode_tokens < 2 || options.decode_tokens > most) {
    return refuse("decode_tokens", options.decode_tokens, 2, most);
  }
  if (options.greedy_tokens != 0 && (options.greedy_tokens < 2 || options.greedy_tokens > most)) {
    return refuse("greedy_tokens", options.greedy_tokens, 2, most);
  }
  if (options.probe_tokens < 0 || options.probe_tokens >= options.decode_tokens) {
    return refuse("probe_tokens", options.probe_tokens, 0, options.decode_tokens - 1);
  }
  return Measure(device, options, std::move(progress));
}

Measure::Measure(Device& device, const MeasureOptions& options, Progress progress)
    : device_(device),
      options_(options),
      progress_(std::move(progress)),
      workers_(std::make_unique<codec::cpu::WorkerPool>(
          std::max(1, static_cast<int>(std::thread::hardware_concurrency())) - 1)) {}

absl::StatusOr<ExactPassage> Measure::RunExact(const Passage& passage) const {
  const absl::Time start = absl::Now();
  const std::string name = absl::StrCat(kExactModel, ", passage ", passage.number);
  ExactPassage exact;
  const std::size_t vocabulary = device_.vocabulary();
  const auto prompt = static_cast<std::size_t>(options_.prompt_tokens);
  const auto count = static_cast<std::size_t>(scored());
  KVF_ASSIGN_OR_RETURN(
      exact.prompt,
      PrefillPrompt(
          device_.model(), passage.tokens.first(prompt), codec::Raw16::kFp16,
          options_.prompt_tokens + std::max(options_.decode_tokens, options_.greedy_tokens)));
  model::PrefillSession& session = *exact.prompt.session;
  if (options_.greedy_tokens > 0) {
    KVF_ASSIGN_OR_RETURN(exact.greedy, ContinueGreedily(session, passage.tokens.first(prompt),
                                                        options_.greedy_tokens));
    KVF_RETURN_IF_ERROR(session.Rewind(options_.prompt_tokens));
  }
  exact.logits.resize(count * vocabulary);
  for (std::size_t at = 0; at < count; at += kScoreTokens) {
    progress_(name, static_cast<int>(at), scored());
    const std::size_t part = std::min(kScoreTokens, count - at);
    KVF_RETURN_IF_ERROR(
        session.Score(passage.tokens.subspan(prompt + at, part),
                      std::span(exact.logits).subspan(at * vocabulary, part * vocabulary)));
  }
  exact.record.passage = passage.number;
  exact.record.codec = kExactModel;
  exact.record.nll.resize(count);
  workers_->Run(scored(), [&](int i) {
    exact.record.nll[i] =
        NegativeLogLikelihood(Row(exact.logits, i, vocabulary), passage.tokens[prompt + i + 1]);
  });
  exact.record.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return exact;
}

absl::StatusOr<std::unique_ptr<Measure::Caches>> Measure::MakeCaches(const codec::Codec& codec,
                                                                     std::size_t passages,
                                                                     bool with_exact) const {
  const auto make_store = [&](const codec::Codec& of, std::uint64_t rows, std::size_t sequences) {
    return DeviceStore::Create(of, rows, static_cast<int>(sequences), device_);
  };
  const auto rows = [&](int new_tokens) -> std::uint64_t {
    return passages * cache::RowsNeeded(options_.prompt_tokens, new_tokens, codec.window);
  };
  auto caches = std::make_unique<Caches>();
  std::uint64_t all_rows = rows(options_.decode_tokens);
  if (options_.probe_tokens > 0) {
    const std::uint64_t probe_rows = rows(options_.probe_tokens + 1);
    all_rows += probe_rows;
    if (with_exact) {
      KVF_ASSIGN_OR_RETURN(const codec::Codec exact, ExactCodec(codec));
      KVF_ASSIGN_OR_RETURN(caches->exact_store, make_store(exact, probe_rows, passages));
      caches->exact_probe = std::make_unique<CacheBatch>(*caches->exact_store);
    }
  }
  const bool greedy = options_.greedy_tokens > 0;
  if (greedy) all_rows += rows(options_.greedy_tokens);
  KVF_ASSIGN_OR_RETURN(caches->store,
                       make_store(codec, all_rows, greedy ? 2 * passages : passages));
  for (auto* batch : {&caches->probe, &caches->greedy, &caches->teacher}) {
    *batch = std::make_unique<CacheBatch>(*caches->store);
  }
  return caches;
}

absl::Status Measure::ShipPrompts(std::span<const Passage> passages,
                                  std::span<const ExactPassage> exact, Caches& caches,
                                  std::span<Record> records) const {
  for (std::size_t i = 0; i < passages.size(); ++i) {
    progress_(absl::StrCat(caches.name(), ", hand-off"), static_cast<int>(i),
              static_cast<int>(passages.size()));
    const codec::Raw16 type = caches.store->cache().codec().raw_type;
    if (type == exact[i].prompt.layers.front().type) {
      KVF_RETURN_IF_ERROR(ShipPrompt(exact[i].prompt.layers, caches, records[i]));
      continue;
    }
    KVF_ASSIGN_OR_RETURN(
        const PrefilledPrompt prompt,
        PrefillPrompt(device_.model(),
                      passages[i].tokens.first(static_cast<std::size_t>(options_.prompt_tokens)),
                      type, options_.prompt_tokens));
    KVF_RETURN_IF_ERROR(ShipPrompt(prompt.layers, caches, records[i]));
  }
  return absl::OkStatus();
}

absl::Status Measure::ShipPrompt(std::span<const codec::KvView> layers, Caches& caches,
                                 Record& record) const {
  std::vector<Recipient> to = {{*caches.teacher, options_.decode_tokens}};
  if (options_.greedy_tokens > 0) to.push_back({*caches.greedy, options_.greedy_tokens});
  if (options_.probe_tokens > 0) {
    to.push_back({*caches.probe, options_.probe_tokens + 1});
  }
  if (caches.exact_probe != nullptr) {
    const Recipient exact = {*caches.exact_probe, options_.probe_tokens + 1};
    KVF_RETURN_IF_ERROR(bench::ShipPrompt(layers, std::span(&exact, 1)).status());
  }
  KVF_ASSIGN_OR_RETURN(record.wire_bytes, bench::ShipPrompt(layers, to));
  return absl::OkStatus();
}

absl::StatusOr<std::uint32_t> Measure::RunProbe(std::span<const Passage> passages, Caches& caches,
                                                ProbeTrace& trace,
                                                std::span<Record> records) const {
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<AttentionProbe> probe,
                       device_.MakeProbe(caches.exact_probe.get(), *caches.probe, trace));
  for (int step = 0; step < options_.probe_tokens; ++step) {
    progress_(absl::StrCat(caches.name(), ", attention"), step, options_.probe_tokens);
    const auto tokens = TokensAt(passages, static_cast<std::size_t>(options_.prompt_tokens + step));
    KVF_RETURN_IF_ERROR(probe->Step(tokens, step % kProbeStride == 0));
  }
  for (std::size_t i = 0; i < records.size(); ++i) records[i].attention_error = probe->Errors(i);
  return probe->check();
}

// Teacher-forced steps and those of the greedy answers, together: the weights are read once for
// both. Not the first ones: they have as many rows as the probe's, whose logits theirs are told
// apart from.
absl::StatusOr<std::uint32_t> Measure::RunDecode(std::span<const Passage> passages,
                                                 std::span<const ExactPassage> exact,
                                                 Caches& caches, std::span<Record> records,
                                                 std::span<Trajectory> answers) const {
  const std::size_t vocabulary = device_.vocabulary();
  std::uint32_t check = 0;
  for (int step = 0, said = 1; step < scored() || said < options_.greedy_tokens;) {
    const bool forced = step < scored();
    const bool greedy = said < options_.greedy_tokens && step >= options_.probe_tokens;
    std::vector<CacheBatch*> batches;
    std::vector<std::int32_t> tokens;
    if (forced) {
      progress_(absl::StrCat(caches.name(), ", teacher-forced"), step, scored());
      batches.push_back(caches.teacher.get());
      tokens = TokensAt(passages, static_cast<std::size_t>(options_.prompt_tokens + step));
    } else {
      progress_(absl::StrCat(caches.name(), ", greedy"), said, options_.greedy_tokens);
    }
    if (greedy) {
      batches.push_back(caches.greedy.get());
      for (const Trajectory& answer : answers) tokens.push_back(answer.tokens.back());
    }
    KVF_ASSIGN_OR_RETURN(std::span<const float> logits, caches.store->Step(batches, tokens));
    if (forced) {
      const std::span<const float> rows = logits.first(passages.size() * vocabulary);
      if (step < options_.probe_tokens) check = Crc32c(std::as_bytes(rows), check);
      KVF_RETURN_IF_ERROR(CompareStep(step++, passages, exact, rows, records));
      logits = logits.subspan(rows.size());
    }
    if (greedy) {
      for (std::size_t i = 0; i < answers.size(); ++i) answers[i].Add(Row(logits, i, vocabulary));
      ++said;
    }
  }
  for (std::size_t i = 0; i < records.size(); ++i) {
    records[i].resident_bytes = caches.teacher->ResidentBytes(i);
    records[i].resident_tokens = caches.teacher->tokens(i);
  }
  return check;
}

absl::Status Measure::CompareStep(int step, std::span<const Passage> passages,
                                  std::span<const ExactPassage> exact,
                                  std::span<const float> logits, std::span<Record> records) const {
  const std::size_t vocabulary = device_.vocabulary();
  const auto at = static_cast<std::size_t>(options_.prompt_tokens + step);
  std::vector<Comparison> compared(passages.size());
  workers_->Run(static_cast<int>(passages.size()), [&](int i) {
    compared[i] = Compare(Row(exact[i].logits, step, vocabulary), Row(logits, i, vocabulary),
                          passages[i].tokens[at + 1]);
  });
  for (std::size_t i = 0; i < passages.size(); ++i) {
    if (!records[i].Add(compared[i])) {
      return absl::InternalError(absl::StrCat("codec ", records[i].codec, ", passage ",
                                              passages[i].number, ", position ", at,
                                              ": the logits are not numbers"));
    }
  }
  return absl::OkStatus();
}

absl::Status Measure::ScoreAnswers(std::span<const ExactPassage> exact,
                                   std::span<const Trajectory> answers,
                                   std::span<Record> records) const {
  for (std::size_t i = 0; i < answers.size(); ++i) {
    progress_(absl::StrCat(records[i].codec, ", trajectory"), static_cast<int>(i),
              static_cast<int>(answers.size()));
    const std::vector<std::int32_t>& said = answers[i].tokens;
    const auto differs = std::mismatch(said.begin(), said.end(), exact[i].greedy.begin()).first;
    records[i].greedy_tokens = options_.greedy_tokens - 1;
    records[i].greedy_prefix = static_cast<int>(differs - said.begin()) - 1;
    KVF_RETURN_IF_ERROR(ScoreTrajectory(exact[i], answers[i], records[i]));
  }
  return absl::OkStatus();
}

// What the exact model thinks along the codec's own answer: teacher forcing leads a lossy cache
// back to the text after every error, this does not.
absl::Status Measure::ScoreTrajectory(const ExactPassage& exact, const Trajectory& trajectory,
                                      Record& record) const {
  const std::size_t vocabulary = device_.vocabulary();
  const std::span<const std::int32_t> said =
      std::span(trajectory.tokens).first(trajectory.tokens.size() - 1);
  model::PrefillSession& session = *exact.prompt.session;
  KVF_RETURN_IF_ERROR(session.Rewind(options_.prompt_tokens));
  std::vector<float> logits(said.size() * vocabulary);
  KVF_RETURN_IF_ERROR(session.Score(said, logits));
  record.trajectory_kl.resize(said.size());
  workers_->Run(static_cast<int>(said.size()), [&](int i) {
    record.trajectory_kl[i] =
        Compare(Row(logits, i, vocabulary), Row(trajectory.logits, i, vocabulary),
                trajectory.tokens[i + 1])
            .kl;
  });
  return absl::OkStatus();
}

// Through one and the same code, no bit of the logits may stay what it is without loss.
absl::Status Measure::CheckNotBypassed(const codec::Codec& codec, std::uint32_t exact_check,
                                       std::uint32_t check) const {
  if (!IsLossy(codec) || options_.probe_tokens == 0 || check != exact_check) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "codec ", codec.name, ": the divergence from the exact cache is exactly 0 over the first ",
      options_.probe_tokens, " decode tokens, so nothing compressed was read. A prompt of ",
      options_.prompt_tokens, " tokens has ",
      codec::PlanBlocks(options_.prompt_tokens, codec.window).blocks,
      " compressed blocks: take a longer one, or smaller sinks and recent"));
}

// What was counted in the buffers is what reservations and prices are made from, and the pool's own
// books have it too.
absl::Status Measure::CheckBytes(const Caches& caches, std::span<const Record> records) const {
  const codec::Codec& codec = caches.store->cache().codec();
  for (const Record& record : records) {
    KVF_ASSIGN_OR_RETURN(const std::size_t wire,
                         codec::HandoffBytes(options_.prompt_tokens, codec, device_.geometry()));
    KVF_ASSIGN_OR_RETURN(const std::size_t resident,
                         codec::HandoffBytes(record.resident_tokens, codec, device_.geometry()));
    if (record.wire_bytes != wire || record.resident_bytes != resident) {
      return absl::InternalError(absl::StrCat(
          "codec ", codec.name, ", passage ", record.passage, ": ", record.wire_bytes,
          " bytes on the wire and ", record.resident_bytes, " resident, by the formula ", wire,
          " and ", resident, ": kvcodec/plan and the cache do not agree"));
    }
  }
  return caches.store->cache().CheckConservation();
}

absl::StatusOr<std::vector<Record>> Measure::RunCodec(const codec::Codec& codec,
                                                      std::span<const Passage> passages,
                                                      std::span<const ExactPassage> exact,
                                                      ProbeTraces& traces) const {
  const absl::Time start = absl::Now();
  std::vector<Record> records(passages.size());
  for (std::size_t i = 0; i < passages.size(); ++i) {
    records[i].passage = passages[i].number;
    records[i].codec = codec.name;
    records[i].codec_hash = HashText(codec);
  }
  KVF_RETURN_IF_ERROR(Supports(device_, codec));
  ProbeTrace& trace = traces[TraceKey(codec)];
  const bool traced = std::ssize(trace.steps) == options_.probe_tokens;
  if (!traced) trace = {};
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Caches> caches,
                       MakeCaches(codec, passages.size(), !traced));
  KVF_RETURN_IF_ERROR(ShipPrompts(passages, exact, *caches, records));
  std::uint32_t exact_check = 0;
  if (options_.probe_tokens > 0) {
    KVF_ASSIGN_OR_RETURN(exact_check, RunProbe(passages, *caches, trace, records));
  }
  std::vector<Trajectory> answers;
  if (options_.greedy_tokens > 0) {
    for (const ExactPassage& one : exact) {
      answers.push_back({.tokens = {one.greedy.front()}});
      answers.back().logits.reserve(static_cast<std::size_t>(options_.greedy_tokens - 1) *
                                    device_.vocabulary());
    }
  }
  KVF_ASSIGN_OR_RETURN(const std::uint32_t check,
                       RunDecode(passages, exact, *caches, records, answers));
  KVF_RETURN_IF_ERROR(CheckNotBypassed(codec, exact_check, check));
  KVF_RETURN_IF_ERROR(ScoreAnswers(exact, answers, records));
  KVF_RETURN_IF_ERROR(CheckBytes(*caches, records));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (Record& record : records) record.seconds = seconds / static_cast<double>(records.size());
  return records;
}

}  // namespace kvferry::bench
