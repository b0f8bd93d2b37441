#include "bench/quality/cache_batch.h"

#include <algorithm>
#include <utility>

#include "bench/local_handoff.h"
#include "common/status_macros.h"

namespace kvferry::bench {

absl::StatusOr<std::unique_ptr<DeviceStore>> DeviceStore::Create(const codec::Codec& codec,
                                                                 std::uint64_t rows,
                                                                 int max_sequences,
                                                                 Device& device) {
  const codec::CacheGeometry geometry = device.geometry();
  std::uint64_t row_bytes = 0;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(const codec::BlockSpec spec, codec.ForLayer(layer, geometry.head_dim));
    row_bytes += codec::PageBytes(spec, geometry.kv_heads);
  }
  std::unique_ptr<DeviceStore> store(new DeviceStore(device, max_sequences));
  KVF_ASSIGN_OR_RETURN(store->memory_, device.MakeMemory(max_sequences));
  KVF_ASSIGN_OR_RETURN(
      store->cache_,
      decode::CacheStore::Create({.codec = codec,
                                  .geometry = geometry,
                                  .pool_bytes = std::max<std::uint64_t>(1, rows) * row_bytes},
                                 *store->memory_));
  return store;
}

absl::StatusOr<std::span<const float>> DeviceStore::Step(std::span<CacheBatch* const> batches,
                                                         std::span<const std::int32_t> tokens) {
  if (runner_ == nullptr) {
    KVF_ASSIGN_OR_RETURN(runner_, device_.MakeRunner(*cache_, max_sequences_));
  }
  std::vector<std::int32_t> positions;
  std::vector<decode::StoredSequence*> sequences;
  for (const CacheBatch* batch : batches) {
    for (decode::StoredSequence* sequence : batch->caches()) {
      positions.push_back(sequence->tokens());
      sequences.push_back(sequence);
    }
  }
  KVF_ASSIGN_OR_RETURN(const std::span<const float> logits,
                       runner_->Step({.tokens = tokens,
                                      .positions = positions,
                                      .sequences = sequences,
                                      .drop_cancelled = [] {}}));
  for (CacheBatch* batch : batches) KVF_RETURN_IF_ERROR(batch->Flush());
  return logits;
}

absl::StatusOr<std::span<const float>> CacheBatch::Step(std::span<const std::int32_t> tokens) {
  CacheBatch* const alone = this;
  return store_.Step(std::span(&alone, 1), tokens);
}

std::vector<std::int32_t> CacheBatch::Positions() const {
  std::vector<std::int32_t> positions;
  for (const auto& cache : caches_) positions.push_back(cache->tokens());
  return positions;
}

std::vector<decode::StoredSequence*> CacheBatch::caches() const {
  std::vector<decode::StoredSequence*> caches;
  for (const auto& cache : caches_) caches.push_back(cache.get());
  return caches;
}

absl::Status CacheBatch::Flush() {
  std::vector<decode::StoredSequence*> full;
  for (const auto& cache : caches_) {
    if (cache->MustFlush()) full.push_back(cache.get());
  }
  if (full.empty()) return absl::OkStatus();
  for (const absl::Status& status : store_.cache().Flush(full)) KVF_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

std::size_t CacheBatch::ResidentBytes(std::size_t sequence) const {
  const codec::CacheGeometry geometry = store_.cache().geometry();
  // Host memory: pages are counted from the views. A device's are the same in every layer.
  const bool on_device = store_.cache().memory().on_device();
  std::size_t bytes = 0;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    std::size_t pages = 0;
    int raw_tokens = 0;
    if (on_device) {
      const decode::StoredSequence::DeviceRows rows = caches_[sequence]->Rows();
      pages = rows.pages.size();
      raw_tokens = rows.sink_tokens + rows.window_tokens;
    } else {
      const codec::SequenceKv kv = caches_[sequence]->View(layer);
      pages = kv.pages.size();
      raw_tokens = kv.sinks.tokens + kv.window.tokens;
    }
    bytes += pages * store_.cache().page_bytes()[layer] +
             codec::Raw16Bytes(raw_tokens, geometry.kv_heads, geometry.head_dim);
  }
  return bytes;
}

absl::StatusOr<std::size_t> ShipPrompt(std::span<const codec::KvView> layers,
                                       std::span<const Recipient> to) {
  DeviceStore& store = to.front().batch.store();
  std::vector<std::unique_ptr<decode::StoredSequence>> caches(to.size());
  for (std::size_t i = 0; i < to.size(); ++i) {
    KVF_ASSIGN_OR_RETURN(caches[i],
                         store.cache().Reserve(layers.front().tokens, to[i].max_new_tokens));
  }
  KVF_RETURN_IF_ERROR(store.device().WaitForPrefill());
  KVF_ASSIGN_OR_RETURN(
      const std::size_t wire_bytes,
      HandOff(layers, store.device().quantizer(), store.cache(), store.device().slot(), caches));
  for (std::size_t i = 0; i < to.size(); ++i) to[i].batch.Add(std::move(caches[i]));
  return wire_bytes;
}

}  // namespace kvferry::bench
