#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <map>
#include <memory>
#include <span>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/device_memory.h"
#include "transport/transport.h"

namespace kvferry::transport {

// The regions of one context, and UCX's handle of what lies in them: a send or receive that does
// not name it has UCX look the memory up and, on a GPU, register it again. Thread: any.
class RegionIndex {
 public:
  void Add(std::span<const std::byte> region, ucp_mem_h handle);
  void Remove(std::span<const std::byte> region);
  // Null where `payload` does not lie in one region.
  ucp_mem_h Find(std::span<const std::byte> payload) const;

 private:
  struct Entry {
    const std::byte* end;
    ucp_mem_h handle;
  };
  mutable absl::Mutex mutex_;
  std::map<const std::byte*, Entry> regions_ ABSL_GUARDED_BY(mutex_);  // by their begin
};

// Memory that UCX has registered, while it lives in `index`. Dies before `context`, and device
// memory before `memory`.
// kResourceExhausted: no memory. kFailedPrecondition: UCX takes device memory for host memory.
absl::StatusOr<std::unique_ptr<Region>> CreateHostRegion(ucp_context_h context,
                                                         std::shared_ptr<RegionIndex> index,
                                                         std::size_t bytes);
absl::StatusOr<std::unique_ptr<Region>> CreateDeviceRegion(ucp_context_h context,
                                                           std::shared_ptr<RegionIndex> index,
                                                           DeviceMemory& memory, std::size_t bytes);

}  // namespace kvferry::transport
