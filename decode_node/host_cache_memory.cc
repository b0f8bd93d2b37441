#include "decode_node/host_cache_memory.h"

#include <cstring>
#include <utility>

#include "common/crc32c.h"
#include "common/status_macros.h"

namespace kvferry::decode {

absl::StatusOr<std::byte*> HostCacheMemory::Allocate(std::size_t bytes) {
  KVF_ASSIGN_OR_RETURN(HostMemory memory, HostMemory::Map(bytes));
  std::byte* data = memory.bytes().data();
  absl::MutexLock lock(&mutex_);
  allocations_.push_back(std::move(memory));
  return data;
}

absl::StatusOr<std::unique_ptr<CacheMemory::Pin>> HostCacheMemory::PinLanding(
    std::span<std::byte>) {
  return nullptr;
}

absl::StatusOr<std::uint32_t> HostCacheMemory::CopyChunk(std::span<const ChunkPart> parts,
                                                         std::span<const std::byte> payload) {
  std::uint32_t crc = 0;
  for (const ChunkPart& part : parts) {
    for (std::byte* to : part.pieces) {
      // A piece is checked while it is copied: it is read from memory once.
      const std::span<const std::byte> piece = payload.first(part.piece_bytes);
      payload = payload.subspan(part.piece_bytes);
      crc = Crc32c(piece, crc);
      std::memcpy(to, piece.data(), piece.size());
    }
  }
  return crc;
}

std::vector<absl::Status> HostCacheMemory::Flush(std::span<const FlushItem> items,
                                                 std::size_t sequences) {
  std::vector<absl::Status> statuses(sequences);
  for (const FlushItem& item : items) {
    absl::Status& status = statuses[item.sequence];
    if (!status.ok()) continue;
    status = backend_.Quantize(item.window.Tokens(item.first_row, codec::kBlockTokens), item.spec,
                               item.origin,
                               {item.page, codec::PageBytes(item.spec, item.window.kv_heads)});
  }
  return statuses;
}

}  // namespace kvferry::decode
