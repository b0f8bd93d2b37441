#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcodec/backend.h"
#include "kvcodec/codec.h"
#include "kvcodec/kv_view.h"

namespace kvferry::decode {

// Pieces of one size that follow each other in a payload, and where each of them goes.
//   pieces: in the memory of the store, 16-byte aligned. piece_bytes: a multiple of 16.
struct ChunkPart {
  std::size_t piece_bytes = 0;
  std::vector<std::byte*> pieces;
};

// The oldest 64 tokens of one window in one layer, and the page that they become.
struct FlushItem {
  std::size_t sequence = 0;  // whose window it is, counted within one call
  codec::BlockSpec spec;
  codec::BlockOrigin origin;
  codec::KvView window;  // rows [0, tokens) in memory, which are a ring on a device
  int first_row = 0;     // of the oldest token
  std::byte* page = nullptr;
};

// Chunks that are copied at a time where memory is on a device; a further one waits. Starting a copy
// and waiting for it takes longer than the copy.
inline constexpr int kDeviceAdopters = 2;

// The memory of a cache and the work that is done where it lies: everything else about a cache is
// bookkeeping (CacheStore). On a host or on one GPU.
// Thread: any; CopyChunk and Flush may run at the same time, on different sequences.
class CacheMemory {
 public:
  virtual ~CacheMemory() = default;

  // "cpu-avx512", "cuda": for messages.
  virtual std::string name() const = 0;
  // Whether kernels work here: windows are rings then (FlushItem), and no host code may follow the
  // pointers.
  virtual bool on_device() const = 0;
  // OK, or kUnimplemented with the list of what there is.
  virtual absl::Status Supports(const codec::BlockSpec& spec) const = 0;

  // 256-byte aligned, contents unspecified, of this object until it dies. kResourceExhausted names
  // the size. bytes 0: null.
  virtual absl::StatusOr<std::byte*> Allocate(std::size_t bytes) = 0;

  // Makes reading payloads out of `ring` quick for as long as the result lives; it dies before
  // `ring`. Null where there is nothing to do.
  class Pin {
   public:
    virtual ~Pin() = default;
  };
  virtual absl::StatusOr<std::unique_ptr<Pin>> PinLanding(std::span<std::byte> ring) = 0;

  // Copies `payload`, which is host memory or the device's, to the pieces of `parts` and returns
  // its CRC32C, in one reading. Nothing of the call goes on when it returns, also after an error.
  virtual absl::StatusOr<std::uint32_t> CopyChunk(std::span<const ChunkPart> parts,
                                                  std::span<const std::byte> payload) = 0;

  // Makes the pages of `items`, which stand together by sequence, and leaves the windows as they
  // are. The answer is per sequence, of `sequences` ones; kInvalidArgument names the value that the
  // codec cannot store, and the sequence's pages are then unspecified. Nothing of the call goes on
  // when it returns.
  virtual std::vector<absl::Status> Flush(std::span<const FlushItem> items,
                                          std::size_t sequences) = 0;
};

}  // namespace kvferry::decode
