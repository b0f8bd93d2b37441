#include "transport/ucx/region.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "transport/ucx/handles.h"

namespace kvferry::transport {
namespace {

constexpr std::size_t kRegionAlignment = 4096;

class HostRegion final : public Region {
 public:
  HostRegion(ucp_context_h context, ucp_mem_h handle, std::byte* memory, std::size_t bytes)
      : context_(context), handle_(handle), memory_(memory), bytes_(bytes) {}
  ~HostRegion() override {
    const ucs_status_t status = ucp_mem_unmap(context_, handle_);
    if (status != UCS_OK)
      Log(LogLevel::kError, "region_unmap_failed", {{"why", ucs_status_string(status)}});
    std::free(memory_);
  }
  std::span<std::byte> bytes() const override { return {memory_, bytes_}; }

 private:
  ucp_context_h context_;
  ucp_mem_h handle_;
  std::byte* memory_;
  std::size_t bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Region>> CreateHostRegion(ucp_context_h context, std::size_t bytes) {
  const std::size_t rounded = (bytes + kRegionAlignment - 1) / kRegionAlignment * kRegionAlignment;
  void* memory = std::aligned_alloc(kRegionAlignment, std::max(rounded, kRegionAlignment));
  if (memory == nullptr)
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a region of ", bytes, " bytes"));
  std::memset(memory, 0, rounded);
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH;
  params.address = memory;
  params.length = rounded;
  ucp_mem_h handle = nullptr;
  const ucs_status_t status = ucp_mem_map(context, &params, &handle);
  if (status != UCS_OK) {
    std::free(memory);
    return FromUcs(status, absl::StrCat("register a region of ", bytes, " bytes"));
  }
  return std::make_unique<HostRegion>(context, handle, static_cast<std::byte*>(memory), bytes);
}

}  // namespace kvferry::transport
