#include "decode_node/host_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvferry::decode {

absl::StatusOr<HostMemory> HostMemory::Map(std::size_t bytes) {
  if (bytes == 0) return HostMemory();
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    const absl::Status why = absl::ErrnoToStatus(errno, "mmap");
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot get ", bytes, " bytes of memory: ", why.message()));
  }
  // Attention reads pages in random order; without huge pages the TLB decides its speed. Advice
  // only: a system without them is merely slower.
  madvise(data, bytes, MADV_HUGEPAGE);
  return HostMemory(static_cast<std::byte*>(data), bytes);
}

HostMemory::HostMemory(HostMemory&& other) noexcept { *this = std::move(other); }

HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostMemory::~HostMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace kvferry::decode
