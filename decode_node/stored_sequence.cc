#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "decode_node/cache_store.h"

namespace kvferry::decode {

using transport::ChunkHeader;
using transport::ChunkKind;

StoredSequence::StoredSequence(CacheStore& store, int prompt_tokens, int max_new_tokens,
                               std::vector<cache::RowIdx> rows, std::byte* buffer)
    : store_(store),
      prompt_tokens_(prompt_tokens),
      max_new_tokens_(max_new_tokens),
      plan_(codec::PlanBlocks(prompt_tokens, store.codec().window)),
      rows_(std::move(rows)),
      buffer_(buffer),
      pages_(store.geometry().layers),
      remaining_tokens_(max_new_tokens) {}

StoredSequence::~StoredSequence() { store_.Return(*this); }

StoredSequence::LayerBuffers StoredSequence::Buffers(int layer) const {
  const codec::CacheGeometry& geometry = store_.geometry();
  const codec::WindowSpec& window = store_.codec().window;
  const std::size_t token = static_cast<std::size_t>(geometry.kv_heads) * geometry.head_dim;
  const std::size_t sinks = token * window.sinks;
  const std::size_t recent = token * codec::WindowCapacity(window);
  std::uint16_t* base = reinterpret_cast<std::uint16_t*>(buffer_) + store_.layer_elements() * layer;
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

std::vector<ChunkPart> StoredSequence::Parts(const ChunkHeader& header) const {
  const codec::CacheGeometry& geometry = store_.geometry();
  const codec::WindowSpec& window = store_.codec().window;
  std::vector<ChunkPart> parts;
  const auto append = [&](std::byte* to, std::size_t bytes) {
    if (parts.empty() || parts.back().piece_bytes != bytes) parts.push_back({bytes, {}});
    parts.back().pieces.push_back(to);
  };
  for (int layer = header.layer_begin; layer < header.layer_begin + header.layer_count; ++layer) {
    if (header.kind == ChunkKind::kBlocks) {
      const int first = (static_cast<int>(header.token_begin) - plan_.sinks) / codec::kBlockTokens;
      const int count = static_cast<int>(header.token_count) / codec::kBlockTokens;
      for (int block = first; block < first + count; ++block) {
        const std::span<std::byte> page = store_.Page(rows_[block], layer);
        append(page.data(), page.size());
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
        append(reinterpret_cast<std::byte*>(to), bytes);
      }
    }
  }
  return parts;
}

absl::Status StoredSequence::CopyChunk(const ChunkHeader& header,
                                       std::span<const std::byte> payload) {
  KVF_ASSIGN_OR_RETURN(const std::uint32_t crc, store_.memory().CopyChunk(Parts(header), payload));
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
  if (store_.memory().on_device()) return absl::OkStatus();
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

// In a ring the oldest token may be in any row.
int StoredSequence::WindowRow(int index) const {
  return (window_begin_row_ + index) % codec::WindowCapacity(store_.codec().window);
}

void StoredSequence::Append() {
  place_ = cache_->Append();
  if (!place_.sink) place_.index = WindowRow(place_.index);
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

StoredSequence::DeviceRows StoredSequence::Rows() const {
  const codec::WindowSpec& window = store_.codec().window;
  const int head_dim = store_.geometry().head_dim;
  const LayerBuffers buffers = Buffers(0);
  const std::int64_t at = std::int64_t{place_.index} * head_dim;
  return {.sinks = buffers.sink_k,
          .window = buffers.window_k,
          .sink_tokens = cache_->sink_tokens(),
          .window_begin = window_begin_row_,
          .window_tokens = cache_->window_tokens(),
          .new_k = (place_.sink ? buffers.sink_k : buffers.window_k) + at,
          .new_v = (place_.sink ? buffers.sink_v : buffers.window_v) + at,
          .head_elements =
              std::int64_t{place_.sink ? window.sinks : codec::WindowCapacity(window)} * head_dim,
          .pages = cache_->published_rows()};
}

absl::Status StoredSequence::StartFlush(std::size_t index, std::vector<FlushItem>& items) {
  const int capacity = codec::WindowCapacity(store_.codec().window);
  const int token_begin = cache_->window_begin();
  KVF_ASSIGN_OR_RETURN(const cache::RowIdx row, cache_->Flush());
  for (int layer = 0; layer < store_.geometry().layers; ++layer) {
    const LayerBuffers buffers = Buffers(layer);
    items.push_back({.sequence = index,
                     .spec = store_.specs()[layer],
                     .origin = {.layer = layer, .token_begin = token_begin},
                     .window = RawView(buffers.window_k, buffers.window_v, capacity, capacity),
                     .first_row = window_begin_row_,
                     .page = store_.Page(row, layer).data()});
  }
  return absl::OkStatus();
}

absl::Status StoredSequence::FinishFlush() {
  const cache::RowIdx row = cache_->published_rows().back();
  const int layers = store_.geometry().layers;
  if (store_.memory().on_device()) {
    window_begin_row_ = WindowRow(codec::kBlockTokens);
  } else {
    for (int layer = 0; layer < layers; ++layer) {
      MoveWindow(layer, cache_->window_tokens());
      pages_[layer].push_back(store_.Page(row, layer).data());
    }
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
