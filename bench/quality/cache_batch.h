#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/device.h"
#include "bench/quality/prompt.h"
#include "decode_node/cache_store.h"
#include "decode_node/step_runner.h"

namespace kvferry::bench {

class CacheBatch;

// A store with its memory on a device, and what steps over it. Thread: one at a time.
class DeviceStore {
 public:
  // So many rows, at least one; steps of at most so many sequences. `device` outlives it.
  static absl::StatusOr<std::unique_ptr<DeviceStore>> Create(const codec::Codec& codec,
                                                             std::uint64_t rows, int max_sequences,
                                                             Device& device);

  decode::CacheStore& cache() const { return *cache_; }
  Device& device() const { return device_; }

  // One decode step of all sequences of `batches`, which are of this store: weights are read once
  // for all of them. tokens: those of one batch after those of the other. The answer: logits,
  // [sequences, vocabulary], valid until the next call.
  absl::StatusOr<std::span<const float>> Step(std::span<CacheBatch* const> batches,
                                              std::span<const std::int32_t> tokens);

 private:
  DeviceStore(Device& device, int max_sequences) : device_(device), max_sequences_(max_sequences) {}

  Device& device_;
  const int max_sequences_;
  std::unique_ptr<decode::CacheMemory> memory_;
  std::unique_ptr<decode::CacheStore> cache_;
  std::unique_ptr<decode::StepRunner> runner_;  // from the first step on
};

// Sequences of one store that step together as decode_node's engine has them: append, attend on the
// compressed cache, flush a full window. All are added before the first step. Thread: one at a
// time.
class CacheBatch {
 public:
  // `store` outlives the batch.
  explicit CacheBatch(DeviceStore& store) : store_(store) {}

  void Add(std::unique_ptr<decode::StoredSequence> cache) { caches_.push_back(std::move(cache)); }
  std::size_t size() const { return caches_.size(); }
  DeviceStore& store() const { return store_; }

  // One decode step of this batch alone. The answer: logits, [sequences, vocabulary], valid until
  // the store's next step.
  absl::StatusOr<std::span<const float>> Step(std::span<const std::int32_t> tokens);

  // The parts of a step, for whoever makes one differently.
  std::vector<std::int32_t> Positions() const;  // of the tokens that come next
  std::vector<decode::StoredSequence*> caches() const;
  absl::Status Flush();  // the windows that are full

  int tokens(std::size_t sequence) const { return caches_[sequence]->tokens(); }
  // What attention would read of a sequence: pages, sinks and window of all layers, counted from
  // what it gets.
  std::size_t ResidentBytes(std::size_t sequence) const;

 private:
  DeviceStore& store_;
  std::vector<std::unique_ptr<decode::StoredSequence>> caches_;
};

// A batch that gets a prompt's cache, and how many tokens follow there.
struct Recipient {
  CacheBatch& batch;
  int max_new_tokens = 0;
};

// Hands a prompt off without a network: laid out and encoded as prefill does, once for all, checked
// and adopted as decode does. layers: K and V of every layer on the store's device, of its 16-bit
// type. to: at least one, all of the same store. Returns the bytes of the payloads that each got.
absl::StatusOr<std::size_t> ShipPrompt(std::span<const codec::KvView> layers,
                                       std::span<const Recipient> to);

}  // namespace kvferry::bench
