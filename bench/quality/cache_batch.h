#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "decode_node/cache_store.h"
#include "decode_node/host_cache_memory.h"
#include "model/model.h"

namespace kvferry::bench {

// A store in host memory, with that memory.
class HostStore {
 public:
  // So many rows, at least one. `backend` outlives it.
  static absl::StatusOr<std::unique_ptr<HostStore>> Create(const codec::Codec& codec,
                                                           const codec::CacheGeometry& geometry,
                                                           std::uint64_t rows,
                                                           const codec::Backend& backend);

  decode::CacheStore& cache() { return *cache_; }
  const codec::Backend& backend() const { return backend_; }

 private:
  explicit HostStore(const codec::Backend& backend) : backend_(backend), memory_(backend) {}

  const codec::Backend& backend_;
  decode::HostCacheMemory memory_;
  std::unique_ptr<decode::CacheStore> cache_;
};

// A prompt's cache in a store, as a hand-off leaves it.
struct ShippedPrompt {
  std::unique_ptr<decode::StoredSequence> cache;  // published
  std::size_t wire_bytes = 0;                     // of the payloads that were encoded and adopted
};

// Hands a prompt off without a network: laid out and encoded as prefill does, checked and adopted
// as decode does. layers: K and V of every layer, of the store's 16-bit type.
absl::StatusOr<ShippedPrompt> ShipPrompt(std::span<const codec::KvView> layers, int max_new_tokens,
                                         HostStore& store);

// Sequences of one store that step together, as decode_node's engine has them: append, attend on
// the compressed cache, flush a full window. Thread: one at a time.
class CacheBatch final : public model::DecodeAttention {
 public:
  // `store` outlives the batch.
  CacheBatch(HostStore& store, int q_heads)
      : store_(store.cache()), backend_(store.backend()), q_heads_(q_heads) {}
  void Add(std::unique_ptr<decode::StoredSequence> cache) { caches_.push_back(std::move(cache)); }
  std::size_t size() const { return caches_.size(); }
  const decode::CacheStore& store() const { return store_; }

  // Makes room for one token each; where those tokens stand.
  std::vector<std::int32_t> Append();
  // The parts of AppendAndAttend, one layer each.
  void Put(int layer, const std::uint16_t* k, const std::uint16_t* v);
  absl::Status Attend(int layer, const float* q, float* out);
  // After a step: flushes the windows that are full.
  absl::Status Flush();

  codec::Raw16 raw_type() const override { return store_.codec().raw_type; }
  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override;

  int tokens(std::size_t sequence) const { return caches_[sequence]->tokens(); }
  // What attention would read of a sequence: pages, sinks and window of all layers, counted from
  // the views that it gets.
  std::size_t ResidentBytes(std::size_t sequence) const;

 private:
  decode::CacheStore& store_;
  const codec::Backend& backend_;
  const int q_heads_;
  std::vector<std::unique_ptr<decode::StoredSequence>> caches_;
  std::vector<codec::SequenceKv> views_;  // of one layer
};

// One decode step of a batch. attention: the batch, or what drives it. logits: [sequences,
// vocabulary].
absl::Status StepBatch(model::Model& model, std::span<const std::int32_t> tokens, CacheBatch& batch,
                       std::span<float> logits);

// Runs the exact model on an exact cache, and shows the same queries, keys and values to a lossy
// cache: how far its attention output is from the exact one, layer by layer. Thread: one at a time.
class AttentionProbe final : public model::DecodeAttention {
 public:
  // Both outlive the probe, hold the same prompts and have the same 16-bit type.
  AttentionProbe(CacheBatch& exact, CacheBatch& lossy, const model::ModelConfig& config);

  // One decode step; with `compare` the lossy caches attend too.
  absl::Status Step(model::Model& model, std::span<const std::int32_t> tokens, bool compare,
                    std::span<float> logits);
  // |o - o'| / |o| over all steps that were compared, by layer.
  std::vector<double> Errors(std::size_t sequence) const;

  codec::Raw16 raw_type() const override { return exact_.raw_type(); }
  absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                               const std::uint16_t* v, float* out) override;

 private:
  struct Squares {
    double difference = 0, exact = 0;
  };

  CacheBatch& exact_;
  CacheBatch& lossy_;
  const int layers_;
  const std::size_t width_;  // of one sequence's output: q_heads * head_dim
  bool compare_ = false;
  std::vector<float> lossy_out_;
  std::vector<Squares> squares_;  // [sequence, layer]
};

}  // namespace kvferry::bench
