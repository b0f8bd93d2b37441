#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "decode_node/cache_memory.h"
#include "kernels/chunk_check.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"

namespace kvferry::decode {

struct DeviceCacheOptions {
  int gpu = 0;
  std::size_t slot_bytes = 0;  // of the largest payload; at most kernels::kCheckMaxBytes
  int max_flush_items = 0;     // of one launch: layers * sequences
};

// A cache in the memory of one GPU. One kernel checks a payload and scatters it to its pages, from
// its landing slot on the GPU, or from a staging slot there to which it was copied from a pinned
// one; on a stream of its own, so that steps of the engine go on. Flushes run on the engine's
// stream.
class DeviceCacheMemory final : public CacheMemory {
 public:
  // Chunks that are adopted at a time; a further one waits. Starting a copy and waiting for it
  // takes longer than the copy.
  static constexpr int kAdopters = 2;

  // `stream`: the engine's, of this GPU; outlives it.
  // kUnavailable: no such GPU. kInvalidArgument: slot_bytes. kResourceExhausted: device memory.
  static absl::StatusOr<std::unique_ptr<DeviceCacheMemory>> Create(
      const DeviceCacheOptions& options, kernels::Stream& stream);

  std::string name() const override { return "cuda"; }
  bool on_device() const override { return true; }
  absl::Status Supports(const codec::BlockSpec& spec) const override;
  absl::StatusOr<std::byte*> Allocate(std::size_t bytes) override;
  absl::StatusOr<std::unique_ptr<Pin>> PinLanding(std::span<std::byte> ring) override;
  absl::StatusOr<std::uint32_t> CopyChunk(std::span<const ChunkPart> parts,
                                          std::span<const std::byte> payload) override;
  std::vector<absl::Status> Flush(std::span<const FlushItem> items, std::size_t sequences) override;

 private:
  // Pinned memory and its copy on the GPU.
  struct Mirror {
    static absl::StatusOr<Mirror> Allocate(std::size_t bytes);
    absl::Status Upload(std::size_t bytes, kernels::Stream& stream) const;

    kernels::PinnedBuffer host;
    kernels::DeviceBuffer device;
  };
  struct FlushHeader;
  // What the adoption of one chunk occupies.
  struct Lane {
    static absl::StatusOr<Lane> Create(std::size_t slot_bytes);

    kernels::Stream stream;
    kernels::DeviceBuffer slot;  // for payloads in host memory
    Mirror pieces;               // the residue's line, then addresses
  };

  DeviceCacheMemory(const DeviceCacheOptions& options, kernels::Stream& stream,
                    std::vector<Lane> lanes, kernels::DeviceCheckTables tables);

  absl::Status EnqueueChunk(std::span<const ChunkPart> parts, std::span<const std::byte> payload,
                            Lane& lane) const;
  // The first fault of these items (kernels::FaultKey), or kNoFault.
  absl::StatusOr<std::uint64_t> LaunchFlush(std::span<const FlushItem> items)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(flush_mutex_);

  const DeviceCacheOptions options_;
  kernels::Stream& stream_;
  const kernels::DeviceCheckTables tables_;

  absl::Mutex allocations_mutex_;
  std::vector<kernels::DeviceBuffer> allocations_ ABSL_GUARDED_BY(allocations_mutex_);

  std::vector<Lane> lanes_;  // each of who has taken it
  absl::Mutex lanes_mutex_;
  std::vector<Lane*> free_lanes_ ABSL_GUARDED_BY(lanes_mutex_);
  absl::Mutex flush_mutex_;
  Mirror flush_ ABSL_GUARDED_BY(flush_mutex_);  // FlushHeader, then items
};

}  // namespace kvferry::decode
