#include "bench/quality/measure.h"

#include <algorithm>
#include <cmath>
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

absl::Status Ignore(int /*layer*/, const codec::KvView& /*kv*/) { return absl::OkStatus(); }

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

std::vector<std::int32_t> TokensAt(std::span<const Passage> passages, std::size_t index) {
  std::vector<std::int32_t> tokens;
  for (const Passage& passage : passages) tokens.push_back(passage.tokens[index]);
  return tokens;
}

}  // namespace

// The probe looks at both stores with the same queries, the other two run on the lossy one alone.
struct Measure::Caches {
  std::unique_ptr<HostStore> exact_store, store;
  std::unique_ptr<CacheBatch> exact_probe, probe, greedy, teacher;
};

absl::StatusOr<Measure> Measure::Create(model::Model& model, const codec::Backend& backend,
                                        const MeasureOptions& options, Progress progress) {
  const auto refuse = [](const char* what, int value, int least, int most) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is ", value, ", allowed are ", least, " to ", most));
  };
  const int context = model.config().max_context_tokens;
  if (options.prompt_tokens < 1 || options.prompt_tokens > context - 2) {
    return refuse("prompt_tokens", options.prompt_tokens, 1, context - 2);
  }
  const int most = context - options.prompt_tokens;
  if (options.decode_tokens < 2 || options.decode_tokens > most) {
    return refuse("decode_tokens", options.decode_tokens, 2, most);
  }
  if (options.greedy_tokens < 2 || options.greedy_tokens > most) {
    return refuse("greedy_tokens", options.greedy_tokens, 2, most);
  }
  if (options.probe_tokens < 1 || options.probe_tokens >= options.decode_tokens) {
    return refuse("probe_tokens", options.probe_tokens, 1, options.decode_tokens - 1);
  }
  return Measure(model, backend, options, std::move(progress));
}

codec::CacheGeometry Measure::geometry() const {
  const model::ModelConfig& config = model_.config();
  return {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim};
}

std::size_t Measure::vocabulary() const {
  return static_cast<std::size_t>(model_.config().vocabulary);
}

absl::StatusOr<ExactPassage> Measure::RunExact(const Passage& passage) const {
  const absl::Time start = absl::Now();
  const std::string name = absl::StrCat(kExactModel, ", passage ", passage.number);
  ExactPassage exact;
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<model::PrefillSession> session,
                       model_.StartPrefill(passage_tokens(), codec::Raw16::kFp16));
  const auto prompt = static_cast<std::size_t>(options_.prompt_tokens);
  const auto count = static_cast<std::size_t>(scored());
  KVF_RETURN_IF_ERROR(session->Run(passage.tokens.first(prompt), Ignore));
  exact.logits.resize(count * vocabulary());
  for (std::size_t at = 0; at < count; at += kScoreTokens) {
    progress_(name, static_cast<int>(at), scored());
    const std::size_t part = std::min(kScoreTokens, count - at);
    KVF_RETURN_IF_ERROR(
        session->Score(passage.tokens.subspan(prompt + at, part),
                       std::span(exact.logits).subspan(at * vocabulary(), part * vocabulary())));
  }
  KVF_ASSIGN_OR_RETURN(exact.prompt,
                       PrefillPrompt(model_, passage.tokens.first(prompt), codec::Raw16::kFp16,
                                     options_.prompt_tokens + options_.greedy_tokens));
  KVF_ASSIGN_OR_RETURN(exact.greedy,
                       ContinueGreedily(*exact.prompt.session, options_.greedy_tokens));
  exact.record.passage = passage.number;
  exact.record.codec = kExactModel;
  for (std::size_t i = 0; i < count; ++i) {
    exact.record.nll.push_back(
        NegativeLogLikelihood(Row(exact.logits, i, vocabulary()), passage.tokens[prompt + i + 1]));
  }
  exact.record.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return exact;
}

absl::StatusOr<std::unique_ptr<Measure::Caches>> Measure::MakeCaches(const codec::Codec& codec,
                                                                     std::size_t passages) const {
  const auto make_store = [&](const codec::Codec& of, std::uint64_t rows) {
    return HostStore::Create(of, geometry(), rows, backend_);
  };
  const auto rows = [&](int new_tokens) -> std::uint64_t {
    return passages * cache::RowsNeeded(options_.prompt_tokens, new_tokens, codec.window);
  };
  auto caches = std::make_unique<Caches>();
  KVF_ASSIGN_OR_RETURN(const codec::Codec exact, ExactCodec(codec));
  KVF_ASSIGN_OR_RETURN(caches->exact_store, make_store(exact, rows(options_.probe_tokens + 1)));
  KVF_ASSIGN_OR_RETURN(caches->store, make_store(codec, rows(options_.probe_tokens + 1) +
                                                            rows(options_.greedy_tokens) +
                                                            rows(options_.decode_tokens)));
  const int q_heads = model_.config().q_heads;
  caches->exact_probe = std::make_unique<CacheBatch>(*caches->exact_store, q_heads);
  for (auto* batch : {&caches->probe, &caches->greedy, &caches->teacher}) {
    *batch = std::make_unique<CacheBatch>(*caches->store, q_heads);
  }
  return caches;
}

absl::Status Measure::ShipPrompts(std::span<const Passage> passages,
                                  std::span<const ExactPassage> exact, Caches& caches,
                                  std::span<Record> records) const {
  for (std::size_t i = 0; i < passages.size(); ++i) {
    progress_(absl::StrCat(caches.store->cache().codec().name, ", hand-off"), static_cast<int>(i),
              static_cast<int>(passages.size()));
    const codec::Raw16 type = caches.store->cache().codec().raw_type;
    if (type == exact[i].prompt.layers.front().type) {
      KVF_RETURN_IF_ERROR(ShipPrompt(exact[i].prompt.layers, caches, records[i]));
      continue;
    }
    KVF_ASSIGN_OR_RETURN(
        const PrefilledPrompt prompt,
        PrefillPrompt(model_,
                      passages[i].tokens.first(static_cast<std::size_t>(options_.prompt_tokens)),
                      type, options_.prompt_tokens));
    KVF_RETURN_IF_ERROR(ShipPrompt(prompt.layers, caches, records[i]));
  }
  return absl::OkStatus();
}

absl::Status Measure::ShipPrompt(std::span<const codec::KvView> layers, Caches& caches,
                                 Record& record) const {
  const auto ship = [&](int new_tokens, HostStore& store, CacheBatch& batch) {
    absl::StatusOr<ShippedPrompt> shipped = bench::ShipPrompt(layers, new_tokens, store);
    if (!shipped.ok()) return shipped.status();
    record.wire_bytes = shipped->wire_bytes;
    batch.Add(std::move(shipped->cache));
    return absl::OkStatus();
  };
  KVF_RETURN_IF_ERROR(ship(options_.probe_tokens + 1, *caches.exact_store, *caches.exact_probe));
  KVF_RETURN_IF_ERROR(ship(options_.probe_tokens + 1, *caches.store, *caches.probe));
  KVF_RETURN_IF_ERROR(ship(options_.greedy_tokens, *caches.store, *caches.greedy));
  return ship(options_.decode_tokens, *caches.store, *caches.teacher);
}

absl::StatusOr<std::uint32_t> Measure::RunProbe(std::span<const Passage> passages, Caches& caches,
                                                std::span<Record> records) const {
  AttentionProbe probe(*caches.exact_probe, *caches.probe, model_.config());
  std::vector<float> logits(passages.size() * vocabulary());
  std::uint32_t check = 0;
  for (int step = 0; step < options_.probe_tokens; ++step) {
    progress_(absl::StrCat(caches.store->cache().codec().name, ", attention"), step,
              options_.probe_tokens);
    const auto tokens = TokensAt(passages, static_cast<std::size_t>(options_.prompt_tokens + step));
    KVF_RETURN_IF_ERROR(probe.Step(model_, tokens, step % kProbeStride == 0, logits));
    check = Crc32c(std::as_bytes(std::span(logits)), check);
  }
  for (std::size_t i = 0; i < records.size(); ++i) records[i].attention_error = probe.Errors(i);
  return check;
}

absl::Status Measure::RunGreedy(std::span<const ExactPassage> exact, Caches& caches,
                                std::span<Record> records) const {
  std::vector<std::int32_t> tokens;
  for (const ExactPassage& passage : exact) tokens.push_back(passage.greedy.front());
  std::vector<float> logits(exact.size() * vocabulary());
  for (int step = 1; step < options_.greedy_tokens; ++step) {
    progress_(absl::StrCat(caches.store->cache().codec().name, ", greedy"), step,
              options_.greedy_tokens);
    KVF_RETURN_IF_ERROR(StepBatch(model_, tokens, *caches.greedy, logits));
    for (std::size_t i = 0; i < exact.size(); ++i) {
      tokens[i] = LikeliestToken(Row(logits, i, vocabulary()));
      Record& record = records[i];
      const bool all_before = record.greedy_prefix == record.greedy_tokens;
      ++record.greedy_tokens;
      if (all_before && tokens[i] == exact[i].greedy[step]) ++record.greedy_prefix;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::uint32_t> Measure::RunTeacherForced(std::span<const Passage> passages,
                                                        std::span<const ExactPassage> exact,
                                                        Caches& caches,
                                                        std::span<Record> records) const {
  std::vector<float> logits(passages.size() * vocabulary());
  std::uint32_t check = 0;
  for (int step = 0; step < scored(); ++step) {
    progress_(absl::StrCat(caches.store->cache().codec().name, ", teacher-forced"), step, scored());
    const auto at = static_cast<std::size_t>(options_.prompt_tokens + step);
    KVF_RETURN_IF_ERROR(StepBatch(model_, TokensAt(passages, at), *caches.teacher, logits));
    if (step < options_.probe_tokens) check = Crc32c(std::as_bytes(std::span(logits)), check);
    for (std::size_t i = 0; i < passages.size(); ++i) {
      const Comparison one = Compare(Row(exact[i].logits, step, vocabulary()),
                                     Row(logits, i, vocabulary()), passages[i].tokens[at + 1]);
      if (!std::isfinite(one.kl) || !std::isfinite(one.nll)) {
        return absl::InternalError(absl::StrCat("codec ", caches.store->cache().codec().name,
                                                ", passage ", passages[i].number, ", position ", at,
                                                ": the logits are not numbers"));
      }
      Record& record = records[i];
      record.nll.push_back(one.nll);
      record.kl.push_back(one.kl);
      record.agree += one.agrees;
      record.sure += one.sure;
      record.sure_agree += one.sure && one.agrees;
    }
  }
  for (std::size_t i = 0; i < records.size(); ++i) {
    records[i].resident_bytes = caches.teacher->ResidentBytes(i);
    records[i].resident_tokens = caches.teacher->tokens(i);
  }
  return check;
}

// What was counted in the buffers is what reservations and prices are made from, and the pool's own
// books have it too.
absl::Status Measure::CheckBytes(const Caches& caches, std::span<const Record> records) const {
  const codec::Codec& codec = caches.store->cache().codec();
  for (const Record& record : records) {
    KVF_ASSIGN_OR_RETURN(const std::size_t wire,
                         codec::HandoffBytes(options_.prompt_tokens, codec, geometry()));
    KVF_ASSIGN_OR_RETURN(const std::size_t resident,
                         codec::HandoffBytes(record.resident_tokens, codec, geometry()));
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
                                                      std::span<const ExactPassage> exact) const {
  const absl::Time start = absl::Now();
  std::vector<Record> records(passages.size());
  for (std::size_t i = 0; i < passages.size(); ++i) {
    records[i].passage = passages[i].number;
    records[i].codec = codec.name;
    records[i].codec_hash = HashText(codec);
  }
  KVF_ASSIGN_OR_RETURN(const std::unique_ptr<Caches> caches, MakeCaches(codec, passages.size()));
  KVF_RETURN_IF_ERROR(ShipPrompts(passages, exact, *caches, records));
  KVF_ASSIGN_OR_RETURN(const std::uint32_t exact_check, RunProbe(passages, *caches, records));
  KVF_RETURN_IF_ERROR(RunGreedy(exact, *caches, records));
  KVF_ASSIGN_OR_RETURN(const std::uint32_t check,
                       RunTeacherForced(passages, exact, *caches, records));
  // Through one and the same code, no bit of the logits may stay what it is without loss.
  if (IsLossy(codec) && check == exact_check) {
    return absl::FailedPreconditionError(absl::StrCat(
        "codec ", codec.name, ": the divergence from the exact cache is exactly 0 over the first ",
        options_.probe_tokens, " decode tokens, so nothing compressed was read. A prompt of ",
        options_.prompt_tokens, " tokens has ",
        codec::PlanBlocks(options_.prompt_tokens, codec.window).blocks,
        " compressed blocks: take a longer one, or smaller sinks and recent"));
  }
  KVF_RETURN_IF_ERROR(CheckBytes(*caches, records));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (Record& record : records) record.seconds = seconds / static_cast<double>(records.size());
  return records;
}

}  // namespace kvferry::bench
