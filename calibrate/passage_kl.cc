#include "calibrate/passage_kl.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/quality/cache_batch.h"
#include "bench/quality/compare.h"
#include "bench/quality/host_attention.h"
#include "common/status_macros.h"
#include "kvcache/sequence_cache.h"

namespace kvferry::calibrate {

absl::StatusOr<std::vector<ExactPassage>> RunExactly(model::Model& model,
                                                     std::span<const bench::Passage> passages,
                                                     const PassageOptions& options,
                                                     const Progress& progress) {
  const int context = model.config().max_context_tokens;
  if (options.prompt_tokens < 1 || options.decode_tokens < 2 ||
      options.prompt_tokens > context - options.decode_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt_tokens is ", options.prompt_tokens, " and decode_tokens ", options.decode_tokens,
        ": at least 1 and 2, together at most ", context, ", are possible"));
  }
  const auto prompt = static_cast<std::size_t>(options.prompt_tokens);
  const auto scored = static_cast<std::size_t>(options.decode_tokens) - 1;
  std::vector<ExactPassage> exact;
  for (const bench::Passage& passage : passages) {
    progress("exact model, passage", static_cast<int>(exact.size()),
             static_cast<int>(passages.size()));
    ExactPassage& one = exact.emplace_back();
    one.passage = passage;
    KVF_ASSIGN_OR_RETURN(
        one.prompt, bench::PrefillPrompt(model, passage.tokens.first(prompt), codec::Raw16::kFp16,
                                         options.prompt_tokens + options.decode_tokens));
    one.logits.resize(scored * static_cast<std::size_t>(model.config().vocabulary));
    KVF_RETURN_IF_ERROR(
        one.prompt.session->Score(passage.tokens.subspan(prompt, scored), one.logits));
  }
  return exact;
}

struct PassageKl::Cache {
  std::unique_ptr<bench::DeviceStore> store;
  std::unique_ptr<bench::CacheBatch> batch;
};

// Rows of one step: the sequences of the first codec, then those of the next.
class PassageKl::Together final : public model::DecodeAttention {
 public:
  Together(std::span<const std::unique_ptr<Cache>> caches, const bench::HostDevice& device)
      : caches_(caches),
        attention_(device),
        q_width_(static_cast<std::size_t>(device.model().config().q_heads) *
                 device.geometry().head_dim),
        kv_width_(static_cast<std::size_t>(device.geometry().kv_heads) *
                  device.geometry().head_dim) {}

  codec::Raw16 raw_type() const override {
    return caches_.front()->store->cache().codec().raw_type;
  }
  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override {
    for (const std::unique_ptr<Cache>& cache : caches_) {
      const bench::CacheBatch& batch = *cache->batch;
      attention_.Put(batch, layer, k, v);
      KVF_RETURN_IF_ERROR(attention_.Attend(batch, layer, q, out));
      q += batch.size() * q_width_;
      out += batch.size() * q_width_;
      k += batch.size() * kv_width_;
      v += batch.size() * kv_width_;
    }
    return absl::OkStatus();
  }

 private:
  const std::span<const std::unique_ptr<Cache>> caches_;
  bench::HostAttention attention_;
  const std::size_t q_width_, kv_width_;
};

PassageKl::PassageKl(bench::HostDevice& device, std::span<const ExactPassage> passages,
                     const PassageOptions& options)
    : device_(device), passages_(passages), options_(options) {}

absl::StatusOr<std::unique_ptr<PassageKl::Cache>> PassageKl::MakeCache(
    const codec::Codec& codec) const {
  const std::uint64_t rows =
      passages_.size() *
      cache::RowsNeeded(options_.prompt_tokens, options_.decode_tokens, codec.window);
  auto cache = std::make_unique<Cache>();
  KVF_ASSIGN_OR_RETURN(cache->store, bench::DeviceStore::Create(
                                         codec, rows, static_cast<int>(passages_.size()), device_));
  cache->batch = std::make_unique<bench::CacheBatch>(*cache->store);
  for (const ExactPassage& passage : passages_) {
    const bench::Recipient to = {*cache->batch, options_.decode_tokens};
    KVF_RETURN_IF_ERROR(bench::ShipPrompt(passage.prompt.layers, std::span(&to, 1)).status());
  }
  return cache;
}

absl::StatusOr<std::vector<double>> PassageKl::MeasureTogether(
    std::span<const codec::Codec> codecs) {
  std::vector<std::unique_ptr<Cache>> caches;
  for (const codec::Codec& codec : codecs) {
    KVF_ASSIGN_OR_RETURN(caches.emplace_back(), MakeCache(codec));
  }
  Together together(caches, device_);
  const std::size_t vocabulary = device_.vocabulary();
  const std::size_t rows = codecs.size() * passages_.size();
  const int scored = options_.decode_tokens - 1;
  std::vector<float> logits(rows * vocabulary);
  std::vector<double> sums(codecs.size(), 0);
  for (int step = 0; step < scored; ++step) {
    const std::size_t at = options_.prompt_tokens + step;
    std::vector<std::int32_t> tokens, positions;
    for (const std::unique_ptr<Cache>& cache : caches) {
      for (const ExactPassage& passage : passages_) {
        tokens.push_back(passage.passage.tokens[at]);
      }
      const std::vector<std::int32_t> own = cache->batch->Positions();
      for (decode::StoredSequence* sequence : cache->batch->caches()) sequence->Append();
      positions.insert(positions.end(), own.begin(), own.end());
    }
    KVF_RETURN_IF_ERROR(device_.model().DecodeStep(tokens, positions, together, logits));
    for (const std::unique_ptr<Cache>& cache : caches) KVF_RETURN_IF_ERROR(cache->batch->Flush());
    for (std::size_t row = 0; row < rows; ++row) {
      const ExactPassage& passage = passages_[row % passages_.size()];
      const bench::Comparison one = bench::Compare(
          std::span(passage.logits).subspan(step * vocabulary, vocabulary),
          std::span(logits).subspan(row * vocabulary, vocabulary), passage.passage.tokens[at + 1]);
      sums[row / passages_.size()] += one.kl;
    }
  }
  for (std::size_t i = 0; i < codecs.size(); ++i) {
    sums[i] /= static_cast<double>(scored) * static_cast<double>(passages_.size());
    if (!std::isfinite(sums[i])) {
      return absl::InternalError(
          absl::StrCat("codec ", codecs[i].name, ": the logits are not numbers"));
    }
  }
  return sums;
}

absl::StatusOr<std::vector<double>> PassageKl::Measure(std::span<const codec::Codec> codecs) {
  const std::size_t at_once =
      std::max<std::size_t>(1, static_cast<std::size_t>(options_.batch) / passages_.size());
  std::vector<double> all;
  while (all.size() < codecs.size()) {
    KVF_ASSIGN_OR_RETURN(
        const std::vector<double> some,
        MeasureTogether(codecs.subspan(all.size(), std::min(at_once, codecs.size() - all.size()))));
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace kvferry::calibrate
