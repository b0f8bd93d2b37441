#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "decode_node/cache_store.h"

namespace kvferry::decode {

using transport::ChunkHeader;
using transport::ChunkKind;

StoredSequence::StoredSequence(CacheStore& store, int prompt_tokens, int max_new_tokens,
                               std::vector<cache::RowIdx> rows, HostMemory buffer)
    : store_(store),
      prompt_tokens_(prompt_tokens),
      max_new_tokens_(max_new_tokens),
      plan_(codec::PlanBlocks(prompt_tokens, store.codec().window)),
      rows_(std::move(rows)),
      buffer_(std::move(buffer)),
      pages_(store.geometry().layers),
      remaining_tokens_(max_new_tokens) {}

StoredSequence::~StoredSequence() { store_.Return(*this); }

StoredSequence::LayerBuffers StoredSequence::Buffers(int layer) const {
  const codec::CacheGeometry& geometry = store_.geometry();
  const codec::WindowSpec& window = store_.codec().window;
  const std::size_t token = static_cast<std::size_t>(geometry.kv_heads) * geometry.head_dim;
  const std::size_t sinks = token * window.sinks;
  const std::size_t recent = token * codec::WindowCapacity(window);
  std::uint16_t* base = reinterpret_cast<std::uint16_t*>(buffer_.bytes().data()) +
                        2 * (sinks + recent) * static_cast<std::size_t>(layer);
  return {.sink_k = base,
          .sink_v = base + sinks,
          .window_k = base + 2 * sinks,
          .window_v = base + 2 * sinks + recent};
}

codec::KvView StoredSequence::RawView(std::uint16_t* k, std::uint16_t* v, int tokens,
                                      int capacity) const {
  const codec::CacheGeometry& geometry = store_.geometry();
  return {.k = k,
          .v = v,
          .type = store_.codec().raw_type,
          .kv_heads = geometry.kv_heads,
          .tokens = tokens,
          .head_dim = geometry.head_dim,
          .head_stride = static_cast<std::int64_t>(capacity) * geometry.head_dim,
          .token_stride = geometry.head_dim};
}

absl::Status StoredSequence::CopyChunk(const ChunkHeader& header,
                                       std::span<const std::byte> payload) {
  std::uint32_t crc = 0;
  // A piece is checked while it is copied: it is read from memory once.
  const auto take = [&](std::byte* to, std::size_t bytes) {
    const std::span<const std::byte> piece = payload.first(bytes);
    payload = payload.subspan(bytes);
    crc = Crc32c(piece, crc);
    std::memcpy(to, piece.data(), bytes);
  };
  const codec::CacheGeometry& geometry = store_.geometry();
  const codec::WindowSpec& window = store_.codec().window;
  for (int layer = header.layer_begin; layer < header.layer_begin + header.layer_count; ++layer) {
    if (header.kind == ChunkKind::kBlocks) {
      const int first = (static_cast<int>(header.token_begin) - plan_.sinks) / codec::kBlockTokens;
      const int count = static_cast<int>(header.token_count) / codec::kBlockTokens;
      for (int block = first; block < first + count; ++block) {
        const std::span<std::byte> page = store_.Page(rows_[block], layer);
        take(page.data(), page.size());
      }
      continue;
    }
    const LayerBuffers buffers = Buffers(layer);
    const bool sinks = header.kind == ChunkKind::kSinks;
    const int capacity = sinks ? window.sinks : codec::WindowCapacity(window);
    const std::size_t bytes = header.token_count * geometry.head_dim * sizeof(std::uint16_t);
    for (std::uint16_t* values :
         {sinks ? buffers.sink_k : buffers.window_k, sinks ? buffers.sink_v : buffers.window_v}) {
      for (int head = 0; head < geometry.kv_heads; ++head) {
        std::uint16_t* to = values + static_cast<std::size_t>(head) * capacity * geometry.head_dim;
        take(reinterpret_cast<std::byte*>(to), bytes);
      }
    }
  }
  if (crc == header.payload_check) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("chunk ", header.chunk_seq, " of transfer ",
                                          header.transfer_id.ToHex(), ": crc32c of ",
                                          header.payload_bytes, " bytes is ", absl::Hex(crc),
                                          ", the header says ", absl::Hex(header.payload_check)));
}

absl::Status StoredSequence::FillChunk(const ChunkHeader& header) {
  if (header.kind != ChunkKind::kBlocks) return absl::OkStatus();
  const int first = (static_cast<int>(header.token_begin) - plan_.sinks) / codec::kBlockTokens;
  const int count = static_cast<int>(header.token_count) / codec::kBlockTokens;
  absl::MutexLock lock(&store_.mutex_);
  for (int block = first; block < first + count; ++block) {
    for (int i = 0; i < header.layer_count; ++i) {
      KVF_RETURN_IF_ERROR(store_.books_.Fill(rows_[block], header.layer_begin + i));
    }
  }
  return absl::OkStatus();
}

absl::Status StoredSequence::Publish() {
  {
    absl::MutexLock lock(&store_.mutex_);
    for (int block = 0; block < plan_.blocks; ++block) {
      KVF_RETURN_IF_ERROR(store_.books_.Publish(rows_[block]));
    }
  }
  KVF_ASSIGN_OR_RETURN(cache_,
                       cache::SequenceCache::Adopt(prompt_tokens_, store_.codec().window, rows_));
  for (int layer = 0; layer < store_.geometry().layers; ++layer) {
    pages_[layer].reserve(rows_.size());
    for (int block = 0; block < plan_.blocks; ++block) {
      pages_[layer].push_back(store_.Page(rows_[block], layer).data());
    }
  }
  return absl::OkStatus();
}

absl::Status StoredSequence::Quarantine() {
  if (std::exchange(fenced_, true)) return absl::OkStatus();
  absl::MutexLock lock(&store_.mutex_);
  for (int i = 0; i < static_cast<int>(rows_.size()); ++i) {
    const cache::RowIdx row = rows_[i];
    if (i >= plan_.blocks) {  // growth: no peer was told of it
      KVF_RETURN_IF_ERROR(store_.books_.Free(row));
      continue;
    }
    KVF_RETURN_IF_ERROR(store_.books_.Quarantine(row));
    for (int layer = 0; layer < store_.geometry().layers; ++layer) {
      if (store_.books_.state(row, layer) == cache::PageState::kQuarantined) {
        quarantined_.push_back(row);
        break;
      }
    }
  }
  return absl::OkStatus();
}

void StoredSequence::Append() {
  place_ = cache_->Append();
  remaining_tokens_.store(std::max(0, prompt_tokens_ + max_new_tokens_ - cache_->tokens()));
}

void StoredSequence::Put(int layer, const std::uint16_t* k, const std::uint16_t* v) {
  const codec::CacheGeometry& geometry = store_.geometry();
  const codec::WindowSpec& window = store_.codec().window;
  const LayerBuffers buffers = Buffers(layer);
  const int capacity = place_.sink ? window.sinks : codec::WindowCapacity(window);
  std::uint16_t* to_k = place_.sink ? buffers.sink_k : buffers.window_k;
  std::uint16_t* to_v = place_.sink ? buffers.sink_v : buffers.window_v;
  const std::size_t bytes = geometry.head_dim * sizeof(std::uint16_t);
  for (int head = 0; head < geometry.kv_heads; ++head) {
    const std::size_t at =
        (static_cast<std::size_t>(head) * capacity + place_.index) * geometry.head_dim;
    std::memcpy(to_k + at, k + static_cast<std::size_t>(head) * geometry.head_dim, bytes);
    std::memcpy(to_v + at, v + static_cast<std::size_t>(head) * geometry.head_dim, bytes);
  }
}

codec::SequenceKv StoredSequence::View(int layer) const {
  const codec::WindowSpec& window = store_.codec().window;
  const LayerBuffers buffers = Buffers(layer);
  return {.sinks = RawView(buffers.sink_k, buffers.sink_v, cache_->sink_tokens(), window.sinks),
          .pages = pages_[layer],
          .window = RawView(buffers.window_k, buffers.window_v, cache_->window_tokens(),
                            codec::WindowCapacity(window))};
}

absl::Status StoredSequence::Flush() {
  const int window_tokens = cache_->window_tokens();
  const int token_begin = cache_->window_begin();
  KVF_ASSIGN_OR_RETURN(const cache::RowIdx row, cache_->Flush());
  const int layers = store_.geometry().layers;
  for (int layer = 0; layer < layers; ++layer) {
    const LayerBuffers buffers = Buffers(layer);
    const codec::KvView oldest = RawView(buffers.window_k, buffers.window_v, codec::kBlockTokens,
                                         codec::WindowCapacity(store_.codec().window));
    const std::span<std::byte> page = store_.Page(row, layer);
    KVF_RETURN_IF_ERROR(store_.backend().Quantize(
        oldest, store_.specs()[layer], {.layer = layer, .token_begin = token_begin}, page));
    MoveWindow(layer, window_tokens - codec::kBlockTokens);
    pages_[layer].push_back(page.data());
  }
  absl::MutexLock lock(&store_.mutex_);
  for (int layer = 0; layer < layers; ++layer) {
    KVF_RETURN_IF_ERROR(store_.books_.Fill(row, layer));
  }
  return store_.books_.Publish(row);
}

// The `tokens` newest tokens go to the front of the window.
void StoredSequence::MoveWindow(int layer, int tokens) {
  const codec::CacheGeometry& geometry = store_.geometry();
  const LayerBuffers buffers = Buffers(layer);
  const std::size_t capacity = codec::WindowCapacity(store_.codec().window);
  const std::size_t bytes = sizeof(std::uint16_t) * tokens * geometry.head_dim;
  for (std::uint16_t* values : {buffers.window_k, buffers.window_v}) {
    for (int head = 0; head < geometry.kv_heads; ++head) {
      std::uint16_t* to = values + head * capacity * geometry.head_dim;
      std::memmove(to, to + codec::kBlockTokens * geometry.head_dim, bytes);
    }
  }
}

}  // namespace kvferry::decode
