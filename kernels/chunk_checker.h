#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/chunk_check.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"

namespace kvferry::kernels {

// CRC32C of chunks in the memory of one GPU, by that GPU. Thread: any; calls take turns.
class ChunkChecker {
 public:
  // On the calling thread's device.
  static absl::StatusOr<std::unique_ptr<ChunkChecker>> Create();

  // payload: device memory, 16-byte aligned, whose values are there (not merely enqueued).
  // kInvalidArgument: alignment, or more than kCheckMaxBytes. Returns when it is known.
  absl::StatusOr<std::uint32_t> Check(std::span<const std::byte> payload);
  // The same, and the payload goes to `pages` in one reading (AdoptPart).
  absl::StatusOr<std::uint32_t> Adopt(std::span<const std::byte> payload, std::byte* const* pages,
                                      std::size_t page_bytes);

 private:
  ChunkChecker(int device, Stream stream, DeviceCheckTables tables, PinnedBuffer host,
               DeviceBuffer residue)
      : device_(device),
        tables_(std::move(tables)),
        stream_(std::move(stream)),
        host_(std::move(host)),
        residue_(std::move(residue)) {}

  const int device_;
  const DeviceCheckTables tables_;
  absl::Mutex mutex_;
  Stream stream_ ABSL_GUARDED_BY(mutex_);
  PinnedBuffer host_ ABSL_GUARDED_BY(mutex_);     // one word
  DeviceBuffer residue_ ABSL_GUARDED_BY(mutex_);  // one word
};

}  // namespace kvferry::kernels
