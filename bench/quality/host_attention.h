#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "bench/quality/cache_batch.h"
#include "bench/quality/host_device.h"

namespace kvferry::bench {

// What a decode step does with the caches of a batch in host memory, one layer each, for whoever
// makes a step out of several batches. Thread: one at a time.
class HostAttention {
 public:
  // `device` outlives it.
  explicit HostAttention(const HostDevice& device) : device_(device) {}

  // k, v: [sequences, kv_heads, head_dim], of the tokens that have been appended.
  void Put(const CacheBatch& batch, int layer, const std::uint16_t* k,
           const std::uint16_t* v) const;
  // q, out: [sequences, q_heads, head_dim].
  absl::Status Attend(const CacheBatch& batch, int layer, const float* q, float* out);

 private:
  const HostDevice& device_;
  std::vector<codec::SequenceKv> views_;  // of one layer
};

}  // namespace kvferry::bench
