#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "decode_node/admission.h"
#include "decode_node/host_memory.h"
#include "kvcache/block_pool.h"
#include "kvcache/sequence_cache.h"
#include "kvcodec/backend.h"
#include "kvcodec/plan.h"
#include "transport/wire.h"

namespace kvferry::decode {

class CacheStore;

// The bytes of one sequence: its rows in the pool, its sinks and window in 16 bit. Gives everything
// back when it dies; must die before its store. Thread: one at a time (data plane until it is
// published, engine afterwards).
class StoredSequence {
 public:
  ~StoredSequence();
  StoredSequence(const StoredSequence&) = delete;
  StoredSequence& operator=(const StoredSequence&) = delete;

  int prompt_tokens() const { return prompt_tokens_; }
  int max_new_tokens() const { return max_new_tokens_; }
  std::uint32_t rows() const { return static_cast<std::uint32_t>(rows_.size()); }

  // Filling. `header` has been checked against the grant (block_receiver).
  // Checks and copies in one pass over the payload. kDataLoss: the checksum; the pages are then
  // still granted and their bytes mean nothing.
  absl::Status CopyChunk(const transport::ChunkHeader& header, std::span<const std::byte> payload);
  // The chunk's pages: granted -> filled.
  absl::Status FillChunk(const transport::ChunkHeader& header);
  // The prompt's pages: filled -> published. The sequence can be attended on.
  absl::Status Publish();
  // After a fault: pages that the sender may still write for go to quarantine, the others back.
  absl::Status Quarantine();

  // Decoding, between Publish and the end.
  int tokens() const { return cache_->tokens(); }
  // Makes room for one more token; Put then stores its K and V, layer by layer.
  void Append();
  //   k, v: [kv_heads, head_dim] of the new token.
  void Put(int layer, const std::uint16_t* k, const std::uint16_t* v);
  // What attention reads, the current token included. Valid until the next Append or Flush.
  codec::SequenceKv View(int layer) const;
  // Whether the window is full: Flush before the next Append.
  bool MustFlush() const { return cache_->MustFlush(); }
  // Turns the oldest 64 window tokens into pages of all layers. kInvalidArgument names the value
  // that no codec can hold: the sequence is then of no use.
  absl::Status Flush();

 private:
  friend class CacheStore;
  StoredSequence(CacheStore& store, int prompt_tokens, int max_new_tokens,
                 std::vector<cache::RowIdx> rows, HostMemory buffer);

  // K and V of sinks and window of one layer, within buffer_.
  struct LayerBuffers {
    std::uint16_t* sink_k;
    std::uint16_t* sink_v;
    std::uint16_t* window_k;
    std::uint16_t* window_v;
  };
  LayerBuffers Buffers(int layer) const;
  codec::KvView RawView(std::uint16_t* k, std::uint16_t* v, int tokens, int capacity) const;
  void MoveWindow(int layer, int tokens);

  CacheStore& store_;
  const int prompt_tokens_;
  const int max_new_tokens_;
  const codec::BlockPlan plan_;  // of the prompt
  std::vector<cache::RowIdx> rows_;
  std::vector<cache::RowIdx> quarantined_;  // of rows_, when Quarantine was called
  bool fenced_ = false;
  HostMemory buffer_;
  std::optional<cache::SequenceCache> cache_;         // from Publish on
  cache::SequenceCache::Place place_;                 // of the current token
  std::vector<std::vector<const std::byte*>> pages_;  // [layer], in token order
  std::atomic<int> remaining_tokens_;                 // read by other threads for the retry hint
};

struct CacheStoreOptions {
  codec::Codec codec;
  codec::CacheGeometry geometry;
  std::uint64_t pool_bytes = 0;
};

// The compressed pool and its books. One codec per pool. Thread: any (one mutex for the books);
// bytes belong to whoever owns their sequence.
class CacheStore {
 public:
  // kInvalidArgument: a codec that the backend does not have for this model, or a pool that does
  // not hold one row. kResourceExhausted: no memory. backend outlives it.
  static absl::StatusOr<std::unique_ptr<CacheStore>> Create(const CacheStoreOptions& options,
                                                            const codec::Backend& backend);
  ~CacheStore();

  // Rows for the prompt and its growth, all granted. kResourceExhausted: not now; nothing is
  // taken.
  absl::StatusOr<std::unique_ptr<StoredSequence>> Reserve(int prompt_tokens, int max_new_tokens);

  const codec::Codec& codec() const { return codec_; }
  const codec::CacheGeometry& geometry() const { return geometry_; }
  const codec::Backend& backend() const { return backend_; }
  std::span<const codec::BlockSpec> specs() const { return specs_; }       // by layer
  std::span<const std::size_t> page_bytes() const { return page_bytes_; }  // by layer
  std::uint32_t rows() const { return total_rows_; }
  std::uint64_t pool_bytes() const { return pool_.bytes().size(); }

  std::uint32_t free_rows() const;
  std::uint32_t sequences() const;
  // What every sequence holds and how long it still needs: for the retry hint.
  std::vector<HeldSequence> Held() const;
  std::array<std::uint64_t, cache::kPageStates> CountPages() const;
  absl::Status CheckConservation() const;

 private:
  friend class StoredSequence;
  CacheStore(const CacheStoreOptions& options, const codec::Backend& backend,
             std::vector<codec::BlockSpec> specs, std::uint32_t rows, cache::BlockPool books);

  std::span<std::byte> Page(cache::RowIdx row, int layer) const;
  std::size_t BufferBytes() const;
  void Return(StoredSequence& sequence);

  const codec::Codec codec_;
  const codec::CacheGeometry geometry_;
  const codec::Backend& backend_;
  const std::vector<codec::BlockSpec> specs_;
  const std::uint32_t total_rows_;
  std::vector<std::size_t> page_bytes_;
  std::vector<std::size_t> layer_offset_;  // of a layer's pages in pool_
  HostMemory pool_;                        // [layer][row] pages

  mutable absl::Mutex mutex_;
  cache::BlockPool books_ ABSL_GUARDED_BY(mutex_);
  std::vector<HostMemory> free_buffers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<const StoredSequence*> live_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvferry::decode
