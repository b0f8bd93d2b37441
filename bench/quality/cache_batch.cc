#include "bench/quality/cache_batch.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "bench/local_handoff.h"
#include "common/status_macros.h"
#include "decode_node/host_memory.h"

namespace kvferry::bench {
namespace {

// What both sides of a hand-off can hold: room for any layer's 16-bit tokens.
constexpr std::size_t kSlotBytes = std::size_t{64} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<HostStore>> HostStore::Create(const codec::Codec& codec,
                                                             const codec::CacheGeometry& geometry,
                                                             std::uint64_t rows,
                                                             const codec::Backend& backend) {
  std::uint64_t row_bytes = 0;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(layer, geometry.head_dim));
    row_bytes += codec::PageBytes(spec, geometry.kv_heads);
  }
  std::unique_ptr<HostStore> store(new HostStore(backend));
  KVF_ASSIGN_OR_RETURN(
      store->cache_,
      decode::CacheStore::Create({.codec = codec,
                                  .geometry = geometry,
                                  .pool_bytes = std::max<std::uint64_t>(1, rows) * row_bytes},
                                 store->memory_));
  return store;
}

absl::StatusOr<ShippedPrompt> ShipPrompt(std::span<const codec::KvView> layers, int max_new_tokens,
                                         HostStore& host) {
  decode::CacheStore& store = host.cache();
  const int tokens = layers.front().tokens;
  ShippedPrompt shipped;
  KVF_ASSIGN_OR_RETURN(shipped.cache, store.Reserve(tokens, max_new_tokens));
  KVF_ASSIGN_OR_RETURN(const decode::HostMemory slot, decode::HostMemory::Map(kSlotBytes));
  KVF_ASSIGN_OR_RETURN(shipped.wire_bytes, HandOff(layers, host.backend(), store, slot.bytes(),
                                                   std::span(&shipped.cache, 1)));
  return shipped;
}

std::vector<std::int32_t> CacheBatch::Append() {
  std::vector<std::int32_t> positions;
  for (const auto& cache : caches_) {
    positions.push_back(cache->tokens());
    cache->Append();
  }
  return positions;
}

void CacheBatch::Put(int layer, const std::uint16_t* k, const std::uint16_t* v) {
  const std::size_t token =
      static_cast<std::size_t>(store_.geometry().kv_heads) * store_.geometry().head_dim;
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    caches_[i]->Put(layer, k + i * token, v + i * token);
  }
}

absl::Status CacheBatch::Attend(int layer, const float* q, float* out) {
  views_.clear();
  for (const auto& cache : caches_) views_.push_back(cache->View(layer));
  return backend_.DecodeAttention(
      {.spec = store_.specs()[layer],
       .q_heads = q_heads_,
       .kv_heads = store_.geometry().kv_heads,
       .scale = 1.0f / std::sqrt(static_cast<float>(store_.geometry().head_dim)),
       .sequences = views_,
       .q = q,
       .out = out});
}

absl::Status CacheBatch::Flush() {
  std::vector<decode::StoredSequence*> full;
  for (const auto& cache : caches_) {
    if (cache->MustFlush()) full.push_back(cache.get());
  }
  for (const absl::Status& status : store_.Flush(full)) KVF_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status CacheBatch::AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                                         const std::uint16_t* v, float* out) {
  Put(layer, k, v);
  return Attend(layer, q, out);
}

std::size_t CacheBatch::ResidentBytes(std::size_t sequence) const {
  const codec::CacheGeometry& geometry = store_.geometry();
  std::size_t bytes = 0;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    const codec::SequenceKv kv = caches_[sequence]->View(layer);
    bytes +=
        kv.pages.size() * store_.page_bytes()[layer] +
        codec::Raw16Bytes(kv.sinks.tokens + kv.window.tokens, geometry.kv_heads, geometry.head_dim);
  }
  return bytes;
}

absl::Status StepBatch(model::Model& model, std::span<const std::int32_t> tokens, CacheBatch& batch,
                       std::span<float> logits) {
  const std::vector<std::int32_t> positions = batch.Append();
  KVF_RETURN_IF_ERROR(model.DecodeStep(tokens, positions, batch, logits));
  return batch.Flush();
}

AttentionProbe::AttentionProbe(CacheBatch& exact, CacheBatch& lossy,
                               const model::ModelConfig& config)
    : exact_(exact),
      lossy_(lossy),
      layers_(config.layers),
      width_(static_cast<std::size_t>(config.q_heads) * config.head_dim),
      lossy_out_(lossy.size() * width_),
      squares_(lossy.size() * static_cast<std::size_t>(config.layers)) {}

absl::Status AttentionProbe::Step(model::Model& model, std::span<const std::int32_t> tokens,
                                  bool compare, std::span<float> logits) {
  compare_ = compare;
  const std::vector<std::int32_t> positions = exact_.Append();
  lossy_.Append();
  KVF_RETURN_IF_ERROR(model.DecodeStep(tokens, positions, *this, logits));
  KVF_RETURN_IF_ERROR(exact_.Flush());
  return lossy_.Flush();
}

absl::Status AttentionProbe::AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                                             const std::uint16_t* v, float* out) {
  KVF_RETURN_IF_ERROR(exact_.AppendAndAttend(layer, q, k, v, out));
  lossy_.Put(layer, k, v);
  if (!compare_) return absl::OkStatus();
  KVF_RETURN_IF_ERROR(lossy_.Attend(layer, q, lossy_out_.data()));
  for (std::size_t sequence = 0; sequence < lossy_.size(); ++sequence) {
    Squares& squares = squares_[sequence * static_cast<std::size_t>(layers_) + layer];
    for (std::size_t i = sequence * width_; i < (sequence + 1) * width_; ++i) {
      const double exact = out[i], difference = exact - lossy_out_[i];
      squares.difference += difference * difference;
      squares.exact += exact * exact;
    }
  }
  return absl::OkStatus();
}

std::vector<double> AttentionProbe::Errors(std::size_t sequence) const {
  std::vector<double> errors;
  for (int layer = 0; layer < layers_; ++layer) {
    const Squares& squares = squares_[sequence * static_cast<std::size_t>(layers_) + layer];
    errors.push_back(std::sqrt(squares.difference / squares.exact));
  }
  return errors;
}

}  // namespace kvferry::bench
