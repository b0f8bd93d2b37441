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

  DeviceCacheMemory(const DeviceCacheOptions& options, kernels::Stream& stream,
                    kernels::Stream adopt_stream, kernels::DeviceCheckTables tables)
      : options_(options),
        stream_(stream),
        tables_(std::move(tables)),
        adopt_stream_(std::move(adopt_stream)) {}

  absl::Status EnqueueChunk(std::span<const ChunkPart> parts, std::span<const std::byte> payload)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(adopt_mutex_);
  // The first fault of these items (kernels::FaultKey), or kNoFault.
  absl::StatusOr<std::uint64_t> LaunchFlush(std::span<const FlushItem> items)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(flush_mutex_);

  const DeviceCacheOptions options_;
  kernels::Stream& stream_;
  const kernels::DeviceCheckTables tables_;

  absl::Mutex allocations_mutex_;
  std::vector<kernels::DeviceBuffer> allocations_ ABSL_GUARDED_BY(allocations_mutex_);

  absl::Mutex adopt_mutex_;
  kernels::Stream adopt_stream_ ABSL_GUARDED_BY(adopt_mutex_);
  kernels::DeviceBuffer slot_ ABSL_GUARDED_BY(adopt_mutex_);
  Mirror pieces_ ABSL_GUARDED_BY(adopt_mutex_);  // the residue's line, then addresses
  absl::Mutex flush_mutex_;
  Mirror flush_ ABSL_GUARDED_BY(flush_mutex_);  // FlushHeader, then items
};

}  // namespace kvferry::decode
