#include "transport/ucx/region.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "transport/ucx/handles.h"

namespace kvferry::transport {
namespace {

constexpr std::size_t kRegionAlignment = 4096;

// Owned memory of either kind.
using Memory = DeviceMemory::Block;

class UcxRegion final : public Region {
 public:
  UcxRegion(ucp_context_h context, std::shared_ptr<RegionIndex> index, ucp_mem_h handle,
            Memory memory, std::size_t bytes)
      : context_(context),
        index_(std::move(index)),
        memory_(std::move(memory)),
        handle_(handle),
        bytes_(bytes) {
    index_->Add({memory_.get(), bytes_}, handle_);
  }
  ~UcxRegion() override {
    index_->Remove({memory_.get(), bytes_});
    const ucs_status_t status = ucp_mem_unmap(context_, handle_);
    if (status != UCS_OK)
      Log(LogLevel::kError, "region_unmap_failed", {{"why", ucs_status_string(status)}});
  }
  std::span<std::byte> bytes() const override { return {memory_.get(), bytes_}; }

  // What UCX has found out about the memory by itself.
  absl::StatusOr<ucs_memory_type_t> type() const {
    ucp_mem_attr_t attributes{};
    attributes.field_mask = UCP_MEM_ATTR_FIELD_MEM_TYPE;
    KVF_RETURN_IF_ERROR(FromUcs(ucp_mem_query(handle_, &attributes), "ask for a region's memory"));
    return attributes.mem_type;
  }

 private:
  const ucp_context_h context_;
  const std::shared_ptr<RegionIndex> index_;
  const Memory memory_;
  const ucp_mem_h handle_;
  const std::size_t bytes_;
};

absl::StatusOr<std::unique_ptr<UcxRegion>> Register(ucp_context_h context,
                                                    std::shared_ptr<RegionIndex> index,
                                                    Memory memory, std::size_t bytes) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
  params.address = memory.get();
  params.length = bytes;
  ucp_mem_h handle = nullptr;
  KVF_RETURN_IF_ERROR(FromUcs(ucp_mem_map(context, &params, &handle),
                              absl::StrCat("register a region of ", bytes, " bytes")));
  return std::make_unique<UcxRegion>(context, std::move(index), handle, std::move(memory), bytes);
}

}  // namespace

void RegionIndex::Add(std::span<const std::byte> region, ucp_mem_h handle) {
  const absl::MutexLock lock(&mutex_);
  regions_[region.data()] = {region.data() + region.size(), handle};
}

void RegionIndex::Remove(std::span<const std::byte> region) {
  const absl::MutexLock lock(&mutex_);
  regions_.erase(region.data());
}

ucp_mem_h RegionIndex::Find(std::span<const std::byte> payload) const {
  const absl::MutexLock lock(&mutex_);
  auto after = regions_.upper_bound(payload.data());
  if (after == regions_.begin()) return nullptr;
  const Entry& entry = std::prev(after)->second;
  return payload.data() + payload.size() <= entry.end ? entry.handle : nullptr;
}

absl::StatusOr<std::unique_ptr<Region>> CreateHostRegion(ucp_context_h context,
                                                         std::shared_ptr<RegionIndex> index,
                                                         std::size_t bytes) {
  const std::size_t rounded =
      std::max((bytes + kRegionAlignment - 1) / kRegionAlignment, std::size_t{1}) *
      kRegionAlignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kRegionAlignment, rounded));
  if (memory == nullptr)
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a region of ", bytes, " bytes"));
  std::memset(memory, 0, rounded);
  return Register(context, std::move(index), Memory(memory, [](std::byte* m) { std::free(m); }),
                  bytes);
}

absl::StatusOr<std::unique_ptr<Region>> CreateDeviceRegion(ucp_context_h context,
                                                           std::shared_ptr<RegionIndex> index,
                                                           DeviceMemory& memory,
                                                           std::size_t bytes) {
  KVF_ASSIGN_OR_RETURN(Memory block, memory.Allocate(bytes));
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<UcxRegion> region,
                       Register(context, std::move(index), std::move(block), bytes));
  KVF_ASSIGN_OR_RETURN(const ucs_memory_type_t type, region->type());
  if (type != UCS_MEMORY_TYPE_CUDA) {
    // It would read the pointer on the host and crash.
    return absl::FailedPreconditionError(absl::StrCat("UCX takes memory of ", memory.name(),
                                                      " for ", ucs_memory_type_names[type],
                                                      " memory: its CUDA modules are not whole"));
  }
  return region;
}

}  // namespace kvferry::transport
