#include "decode_node/cache_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace kvferry::decode {
namespace {

absl::StatusOr<std::vector<codec::BlockSpec>> MakeSpecs(const CacheStoreOptions& options,
                                                        const CacheMemory& memory) {
  KVF_RETURN_IF_ERROR(options.codec.FitsModel(options.geometry));
  std::vector<codec::BlockSpec> specs;
  for (int layer = 0; layer < options.geometry.layers; ++layer) {
    KVF_ASSIGN_OR_RETURN(specs.emplace_back(),
                         options.codec.ForLayer(layer, options.geometry.head_dim));
    if (absl::Status status = memory.Supports(specs.back()); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("codec: \"", options.codec.name, "\", layer ",
                                                     layer, ", on backend ", memory.name(), ": ",
                                                     status.message()));
    }
  }
  return specs;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CacheStore>> CacheStore::Create(const CacheStoreOptions& options,
                                                               CacheMemory& memory) {
  KVF_ASSIGN_OR_RETURN(std::vector<codec::BlockSpec> specs, MakeSpecs(options, memory));
  std::uint64_t row_bytes = 0;
  for (const codec::BlockSpec& spec : specs) {
    row_bytes += codec::PageBytes(spec, options.geometry.kv_heads);
  }
  if (row_bytes == 0 || options.pool_bytes < row_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("pool_bytes is ", options.pool_bytes, "; 64 tokens of this model take ",
                     row_bytes, " bytes with codec \"", options.codec.name, "\""));
  }
  const std::uint64_t rows = std::min<std::uint64_t>(options.pool_bytes / row_bytes, 1u << 30);
  KVF_ASSIGN_OR_RETURN(
      cache::BlockPool books,
      cache::BlockPool::Create(options.geometry.layers, static_cast<std::uint32_t>(rows)));
  std::unique_ptr<CacheStore> store(new CacheStore(
      options, memory, std::move(specs), static_cast<std::uint32_t>(rows), std::move(books)));
  const absl::StatusOr<std::byte*> pool = memory.Allocate(rows * row_bytes);
  if (!pool.ok()) {
    return absl::Status(pool.status().code(),
                        absl::StrCat("pool_bytes: ", pool.status().message()));
  }
  store->pool_ = *pool;
  store->pool_bytes_ = rows * row_bytes;
  KVF_RETURN_IF_ERROR(store->PrepareBuffers(options.prepared_sequences));
  return store;
}

CacheStore::CacheStore(const CacheStoreOptions& options, CacheMemory& memory,
                       std::vector<codec::BlockSpec> specs, std::uint32_t rows,
                       cache::BlockPool books)
    : codec_(options.codec),
      geometry_(options.geometry),
      memory_(memory),
      specs_(std::move(specs)),
      total_rows_(rows),
      books_(std::move(books)) {
  std::size_t offset = 0;
  for (const codec::BlockSpec& spec : specs_) {
    page_bytes_.push_back(codec::PageBytes(spec, geometry_.kv_heads));
    layer_offset_.push_back(offset);
    offset += page_bytes_.back() * rows;
  }
}

CacheStore::~CacheStore() {
  absl::MutexLock lock(&mutex_);
  if (!live_.empty()) Log(LogLevel::kError, "sequences_outlive_store", {{"count", live_.size()}});
}

std::span<std::byte> CacheStore::Page(cache::RowIdx row, int layer) const {
  const std::size_t bytes = page_bytes_[layer];
  return {layer_pages(layer) + bytes * static_cast<std::uint32_t>(row), bytes};
}

std::int64_t CacheStore::layer_elements() const {
  const std::int64_t tokens = codec_.window.sinks + codec::WindowCapacity(codec_.window);
  return 2 * tokens * geometry_.kv_heads * geometry_.head_dim;
}

std::size_t CacheStore::BufferBytes() const {
  return sizeof(std::uint16_t) * geometry_.layers * layer_elements();
}

absl::Status CacheStore::PrepareBuffers(int sequences) {
  constexpr std::size_t kAlignment = 256;  // as CacheMemory::Allocate has it
  const std::size_t stride = (BufferBytes() + kAlignment - 1) / kAlignment * kAlignment;
  const absl::StatusOr<std::byte*> all = memory_.Allocate(stride * sequences);
  if (!all.ok()) {
    return absl::Status(all.status().code(),
                        absl::StrCat("sinks and windows of ", sequences,
                                     " sequences (max_sequences): ", all.status().message()));
  }
  absl::MutexLock lock(&mutex_);
  for (int i = sequences; i > 0; --i) free_buffers_.push_back(*all + stride * (i - 1));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StoredSequence>> CacheStore::Reserve(int prompt_tokens,
                                                                    int max_new_tokens) {
  std::vector<cache::RowIdx> rows;
  std::byte* buffer = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    KVF_ASSIGN_OR_RETURN(
        rows, books_.Reserve(cache::RowsNeeded(prompt_tokens, max_new_tokens, codec_.window)));
    if (!free_buffers_.empty()) {
      buffer = free_buffers_.back();
      free_buffers_.pop_back();
    }
  }
  if (buffer == nullptr) {
    const absl::StatusOr<std::byte*> fresh = memory_.Allocate(BufferBytes());
    if (!fresh.ok()) {
      absl::MutexLock lock(&mutex_);
      for (const cache::RowIdx row : rows) KVF_RETURN_IF_ERROR(books_.Free(row));
      return fresh.status();
    }
    buffer = *fresh;
  }
  std::unique_ptr<StoredSequence> sequence(
      new StoredSequence(*this, prompt_tokens, max_new_tokens, std::move(rows), buffer));
  absl::MutexLock lock(&mutex_);
  live_.insert(sequence.get());
  return sequence;
}

void CacheStore::Return(StoredSequence& sequence) {
  absl::MutexLock lock(&mutex_);
  live_.erase(&sequence);
  free_buffers_.push_back(sequence.buffer_);
  const auto give_back = [&](cache::RowIdx row, absl::Status status) {
    if (status.ok()) return;
    Log(LogLevel::kError, "page_lost", {{"row", static_cast<std::uint32_t>(row)}, {"why", status}});
  };
  if (sequence.fenced_) {
    for (const cache::RowIdx row : sequence.quarantined_) {
      give_back(row, books_.ReleaseQuarantine(row));
    }
    return;
  }
  for (const cache::RowIdx row : sequence.rows_) give_back(row, books_.Free(row));
}

std::vector<absl::Status> CacheStore::Flush(std::span<StoredSequence* const> sequences) {
  std::vector<FlushItem> items;
  std::vector<absl::Status> started(sequences.size());
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    started[i] = sequences[i]->StartFlush(i, items);
  }
  std::vector<absl::Status> statuses = memory_.Flush(items, sequences.size());
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (!started[i].ok()) statuses[i] = started[i];
    if (statuses[i].ok()) statuses[i] = sequences[i]->FinishFlush();
  }
  return statuses;
}

std::uint32_t CacheStore::free_rows() const {
  absl::MutexLock lock(&mutex_);
  return books_.free_rows();
}

std::uint32_t CacheStore::sequences() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<std::uint32_t>(live_.size());
}

std::vector<HeldSequence> CacheStore::Held() const {
  absl::MutexLock lock(&mutex_);
  std::vector<HeldSequence> held;
  held.reserve(live_.size());
  for (const StoredSequence* sequence : live_) {
    held.push_back(
        {.rows = sequence->rows(), .remaining_tokens = sequence->remaining_tokens_.load()});
  }
  return held;
}

std::array<std::uint64_t, cache::kPageStates> CacheStore::CountPages() const {
  absl::MutexLock lock(&mutex_);
  return books_.CountPages();
}

absl::Status CacheStore::CheckConservation() const {
  absl::MutexLock lock(&mutex_);
  return books_.CheckConservation();
}

}  // namespace kvferry::decode
