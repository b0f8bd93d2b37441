#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "decode_node/cache_memory.h"
#include "decode_node/host_memory.h"

namespace kvferry::decode {

// A cache in the memory of this host.
class HostCacheMemory final : public CacheMemory {
 public:
  // backend outlives it.
  explicit HostCacheMemory(const codec::Backend& backend) : backend_(backend) {}

  std::string name() const override { return backend_.name(); }
  bool on_device() const override { return false; }
  absl::Status Supports(const codec::BlockSpec& spec) const override {
    return backend_.Supports(spec);
  }
  absl::StatusOr<std::byte*> Allocate(std::size_t bytes) override;
  absl::StatusOr<std::unique_ptr<Pin>> PinLanding(std::span<std::byte> ring) override;
  absl::StatusOr<std::uint32_t> CopyChunk(std::span<const ChunkPart> parts,
                                          std::span<const std::byte> payload) override;
  std::vector<absl::Status> Flush(std::span<const FlushItem> items, std::size_t sequences) override;

 private:
  const codec::Backend& backend_;
  absl::Mutex mutex_;
  std::vector<HostMemory> allocations_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvferry::decode
