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
#include "decode_node/cache_memory.h"
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
  // Makes room for one more token, whose K and V are then stored layer by layer: by Put, or by a
  // kernel at DeviceRows::new_k and new_v.
  void Append();
  // Whether the window is full: CacheStore::Flush before the next Append.
  bool MustFlush() const { return cache_->MustFlush(); }

  // In host memory.
  //   k, v: [kv_heads, head_dim] of the new token.
  void Put(int layer, const std::uint16_t* k, const std::uint16_t* v);
  // What attention reads, the current token included. Valid until the next Append or Flush.
  codec::SequenceKv View(int layer) const;

  // On a device, for kernels: addresses in layer 0; those of layer n lie n * layer_elements() of
  // the store further on.
  struct DeviceRows {
    std::uint16_t* sinks = nullptr;   // K [kv_heads, sink capacity, head_dim], then V
    std::uint16_t* window = nullptr;  // K [kv_heads, WindowCapacity, head_dim], then V: a ring
    int sink_tokens = 0;
    int window_begin = 0;  // row of the oldest token
    int window_tokens = 0;
    std::uint16_t* new_k = nullptr;  // the current token's row of KV head 0
    std::uint16_t* new_v = nullptr;
    std::int64_t head_elements = 0;        // from there to its row of the next head
    std::span<const cache::RowIdx> pages;  // in token order
  };
  // Valid until the next Append or Flush.
  DeviceRows Rows() const;

 private:
  friend class CacheStore;
  StoredSequence(CacheStore& store, int prompt_tokens, int max_new_tokens,
                 std::vector<cache::RowIdx> rows, std::byte* buffer);

  // K and V of sinks and window of one layer, within buffer_.
  struct LayerBuffers {
    std::uint16_t* sink_k;
    std::uint16_t* sink_v;
    std::uint16_t* window_k;
    std::uint16_t* window_v;
  };
  LayerBuffers Buffers(int layer) const;
  std::vector<ChunkPart> Parts(const transport::ChunkHeader& header) const;
  int WindowRow(int index) const;
  codec::KvView RawView(std::uint16_t* k, std::uint16_t* v, int tokens, int capacity) const;
  // The row of the next block is taken; one item per layer is added.
  absl::Status StartFlush(std::size_t index, std::vector<FlushItem>& items);
  absl::Status FinishFlush();
  void MoveWindow(int layer, int tokens);

  CacheStore& store_;
  const int prompt_tokens_;
  const int max_new_tokens_;
  const codec::BlockPlan plan_;  // of the prompt
  std::vector<cache::RowIdx> rows_;
  std::vector<cache::RowIdx> quarantined_;  // of rows_, when Quarantine was called
  bool fenced_ = false;
  std::byte* buffer_;                                 // BufferBytes of the store's memory
  std::optional<cache::SequenceCache> cache_;         // from Publish on
  cache::SequenceCache::Place place_;                 // of the current token
  int window_begin_row_ = 0;                          // of the oldest window token
  std::vector<std::vector<const std::byte*>> pages_;  // [layer], in token order; for View
  std::atomic<int> remaining_tokens_;                 // read by other threads for the retry hint
};

struct CacheStoreOptions {
  codec::Codec codec;
  codec::CacheGeometry geometry;
  std::uint64_t pool_bytes = 0;
  // Sequences whose sinks and windows are allocated together with the pool. Those of more at a time
  // are when they are first needed, within Reserve.
  int prepared_sequences = 0;
};

// The compressed pool and its books. One codec per pool. Thread: any (one mutex for the books);
// bytes belong to whoever owns their sequence.
class CacheStore {
 public:
  // kInvalidArgument: a codec that the memory does not have for this model, or a pool that does
  // not hold one row. kResourceExhausted: no memory. `memory` outlives it.
  static absl::StatusOr<std::unique_ptr<CacheStore>> Create(const CacheStoreOptions& options,
                                                            CacheMemory& memory);
  ~CacheStore();

  // Rows for the prompt and its growth, all granted. kResourceExhausted: not now; nothing is
  // taken.
  absl::StatusOr<std::unique_ptr<StoredSequence>> Reserve(int prompt_tokens, int max_new_tokens);

  // Turns the oldest 64 window tokens of every sequence, whose windows are all full, into pages of
  // all layers. The answer is per sequence; kInvalidArgument names the value that no codec can
  // hold: the sequence is then of no use. Thread: the engine's.
  std::vector<absl::Status> Flush(std::span<StoredSequence* const> sequences);

  const codec::Codec& codec() const { return codec_; }
  const codec::CacheGeometry& geometry() const { return geometry_; }
  CacheMemory& memory() const { return memory_; }
  std::span<const codec::BlockSpec> specs() const { return specs_; }       // by layer
  std::span<const std::size_t> page_bytes() const { return page_bytes_; }  // by layer
  std::uint32_t rows() const { return total_rows_; }
  std::uint64_t pool_bytes() const { return pool_bytes_; }
  // Where the pages of a layer begin: that of row r is r * page_bytes()[layer] further on.
  std::byte* layer_pages(int layer) const { return pool_ + layer_offset_[layer]; }
  // From a sequence's sinks and window in one layer to those in the next.
  std::int64_t layer_elements() const;

  std::uint32_t free_rows() const;
  std::uint32_t sequences() const;
  // What every sequence holds and how long it still needs: for the retry hint.
  std::vector<HeldSequence> Held() const;
  std::array<std::uint64_t, cache::kPageStates> CountPages() const;
  absl::Status CheckConservation() const;

 private:
  friend class StoredSequence;
  CacheStore(const CacheStoreOptions& options, CacheMemory& memory,
             std::vector<codec::BlockSpec> specs, std::uint32_t rows, cache::BlockPool books);

  std::span<std::byte> Page(cache::RowIdx row, int layer) const;
  std::size_t BufferBytes() const;
  absl::Status PrepareBuffers(int sequences);
  void Return(StoredSequence& sequence);

  const codec::Codec codec_;
  const codec::CacheGeometry geometry_;
  CacheMemory& memory_;
  const std::vector<codec::BlockSpec> specs_;
  const std::uint32_t total_rows_;
  std::vector<std::size_t> page_bytes_;
  std::vector<std::size_t> layer_offset_;  // of a layer's pages in pool_
  std::uint64_t pool_bytes_ = 0;
  std::byte* pool_ = nullptr;  // [layer][row] pages

  mutable absl::Mutex mutex_;
  cache::BlockPool books_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::byte*> free_buffers_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<const StoredSequence*> live_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvferry::decode
