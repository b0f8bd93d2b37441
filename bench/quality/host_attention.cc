#include "bench/quality/host_attention.h"

#include <cmath>
#include <cstddef>

namespace kvferry::bench {

void HostAttention::Put(const CacheBatch& batch, int layer, const std::uint16_t* k,
                        const std::uint16_t* v) const {
  const codec::CacheGeometry geometry = device_.geometry();
  const std::size_t token = static_cast<std::size_t>(geometry.kv_heads) * geometry.head_dim;
  for (decode::StoredSequence* cache : batch.caches()) {
    cache->Put(layer, k, v);
    k += token;
    v += token;
  }
}

absl::Status HostAttention::Attend(const CacheBatch& batch, int layer, const float* q, float* out) {
  views_.clear();
  for (const decode::StoredSequence* cache : batch.caches()) views_.push_back(cache->View(layer));
  const codec::CacheGeometry geometry = device_.geometry();
  return device_.quantizer().DecodeAttention(
      {.spec = batch.store().cache().specs()[layer],
       .q_heads = device_.model().config().q_heads,
       .kv_heads = geometry.kv_heads,
       .scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim)),
       .sequences = views_,
       .q = q,
       .out = out});
}

}  // namespace kvferry::bench
