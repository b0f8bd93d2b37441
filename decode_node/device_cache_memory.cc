#include "decode_node/device_cache_memory.h"

#include <algorithm>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/adopt_chunk.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/flush_window.h"
#include "kernels/quantize_block.h"

namespace kvferry::decode {
namespace {

using kernels::QuantizeItem;

constexpr std::size_t kLineBytes = 256;      // the residue is apart from the addresses
constexpr std::size_t kSmallestPiece = 128;  // a block, or a token of 64 channels
constexpr std::size_t kMaxItems = 65535;     // of one launch
constexpr std::size_t kUnit = kernels::kCheckUnitBytes;

class RegisteredPin final : public CacheMemory::Pin {
 public:
  explicit RegisteredPin(kernels::RegisteredMemory memory) : memory_(std::move(memory)) {}

 private:
  kernels::RegisteredMemory memory_;
};

QuantizeItem ItemOf(const FlushItem& item) {
  return {.k = item.window.k,
          .v = item.window.v,
          .page = item.page,
          .head_stride = item.window.head_stride,
          .token_stride = static_cast<std::int32_t>(item.window.token_stride),
          .token = item.origin.token_begin,
          .first_row = item.first_row,
          .ring_rows = item.window.tokens,
          .k_bits = static_cast<std::uint8_t>(item.spec.k_bits),
          .v_bits = static_cast<std::uint8_t>(item.spec.v_bits),
          .layer = static_cast<std::uint16_t>(item.spec.layer)};
}

kernels::Widths WidthsOf(std::span<const FlushItem> items) {
  kernels::Widths widths = 0;
  for (const FlushItem& item : items) widths |= kernels::WidthsOf(item.spec);
  return widths;
}

}  // namespace

// What a launch of flush_window reads and writes beside its items.
struct DeviceCacheMemory::FlushHeader {
  std::uint64_t first_fault;
  unsigned item_count;
  unsigned reserved[13];
};

absl::StatusOr<DeviceCacheMemory::Mirror> DeviceCacheMemory::Mirror::Allocate(std::size_t bytes) {
  Mirror mirror;
  KVF_ASSIGN_OR_RETURN(mirror.host, kernels::PinnedBuffer::Allocate(bytes));
  KVF_ASSIGN_OR_RETURN(mirror.device, kernels::DeviceBuffer::Allocate(bytes));
  return mirror;
}

absl::Status DeviceCacheMemory::Mirror::Upload(std::size_t bytes, kernels::Stream& stream) const {
  return kernels::CopyAsync(device.data(), host.data(), bytes, stream);
}

absl::StatusOr<DeviceCacheMemory::Lane> DeviceCacheMemory::Lane::Create(std::size_t slot_bytes) {
  // A chunk that waits holds up its sender: before the engine's work.
  KVF_ASSIGN_OR_RETURN(kernels::Stream stream, kernels::Stream::Create(/*priority=*/-1));
  KVF_ASSIGN_OR_RETURN(kernels::DeviceBuffer slot, kernels::DeviceBuffer::Allocate(slot_bytes));
  const std::size_t pieces = slot_bytes / kSmallestPiece + 1;
  KVF_ASSIGN_OR_RETURN(Mirror mirror, Mirror::Allocate(kLineBytes + pieces * sizeof(std::byte*)));
  return Lane{std::move(stream), std::move(slot), std::move(mirror)};
}

DeviceCacheMemory::DeviceCacheMemory(const DeviceCacheOptions& options, kernels::Stream& stream,
                                     std::vector<Lane> lanes, kernels::DeviceCheckTables tables)
    : options_(options), stream_(stream), tables_(std::move(tables)), lanes_(std::move(lanes)) {
  absl::MutexLock lock(&lanes_mutex_);
  for (Lane& lane : lanes_) free_lanes_.push_back(&lane);
}

absl::StatusOr<std::unique_ptr<DeviceCacheMemory>> DeviceCacheMemory::Create(
    const DeviceCacheOptions& options, kernels::Stream& stream) {
  if (options.slot_bytes == 0 || options.slot_bytes > kernels::kCheckMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat("landing_slot_bytes is ", options.slot_bytes,
                                                   "; a GPU adopts at most ",
                                                   kernels::kCheckMaxBytes, " bytes at a time"));
  }
  KVF_RETURN_IF_ERROR(kernels::UseDevice(options.gpu));
  std::vector<Lane> lanes;
  for (int i = 0; i < kDeviceAdopters; ++i) {
    KVF_ASSIGN_OR_RETURN(Lane lane, Lane::Create(options.slot_bytes));
    lanes.push_back(std::move(lane));
  }
  KVF_ASSIGN_OR_RETURN(kernels::DeviceCheckTables tables,
                       kernels::DeviceCheckTables::Create(lanes[0].stream));
  std::unique_ptr<DeviceCacheMemory> memory(
      new DeviceCacheMemory(options, stream, std::move(lanes), std::move(tables)));
  absl::MutexLock flush_lock(&memory->flush_mutex_);
  const std::size_t items = std::clamp<std::size_t>(options.max_flush_items, 1, kMaxItems);
  KVF_ASSIGN_OR_RETURN(memory->flush_,
                       Mirror::Allocate(sizeof(FlushHeader) + items * sizeof(QuantizeItem)));
  return memory;
}

absl::Status DeviceCacheMemory::Supports(const codec::BlockSpec& spec) const {
  return kernels::SupportsQuantize(spec);
}

absl::StatusOr<std::byte*> DeviceCacheMemory::Allocate(std::size_t bytes) {
  KVF_RETURN_IF_ERROR(kernels::UseDevice(options_.gpu));
  KVF_ASSIGN_OR_RETURN(kernels::DeviceBuffer buffer, kernels::DeviceBuffer::Allocate(bytes));
  std::byte* data = buffer.data();
  absl::MutexLock lock(&allocations_mutex_);
  allocations_.push_back(std::move(buffer));
  return data;
}

absl::StatusOr<std::unique_ptr<CacheMemory::Pin>> DeviceCacheMemory::PinLanding(
    std::span<std::byte> ring) {
  KVF_RETURN_IF_ERROR(kernels::UseDevice(options_.gpu));
  KVF_ASSIGN_OR_RETURN(kernels::RegisteredMemory memory, kernels::RegisteredMemory::Register(ring));
  return std::make_unique<RegisteredPin>(std::move(memory));
}

absl::StatusOr<std::uint32_t> DeviceCacheMemory::CopyChunk(std::span<const ChunkPart> parts,
                                                           std::span<const std::byte> payload) {
  KVF_RETURN_IF_ERROR(kernels::UseDevice(options_.gpu));
  Lane* lane = nullptr;
  {
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lanes_mutex_) {
      return !free_lanes_.empty();
    };
    absl::MutexLock lock(&lanes_mutex_, absl::Condition(&any));
    lane = free_lanes_.back();
    free_lanes_.pop_back();
  }
  const absl::Cleanup give_back = [this, lane] {
    absl::MutexLock lock(&lanes_mutex_);
    free_lanes_.push_back(lane);
  };
  const absl::Status enqueued = EnqueueChunk(parts, payload, *lane);
  // After an error, too, nothing may go on: the slot and the pages are their owners' again.
  const absl::Status done = lane->stream.Synchronize();
  KVF_RETURN_IF_ERROR(enqueued);
  KVF_RETURN_IF_ERROR(done);
  return kernels::FinishChunkCheck(*lane->pieces.host.as<std::uint32_t>(), payload.size());
}

absl::Status DeviceCacheMemory::EnqueueChunk(std::span<const ChunkPart> parts,
                                             std::span<const std::byte> payload, Lane& lane) const {
  std::byte** const addresses = reinterpret_cast<std::byte**>(lane.pieces.host.data() + kLineBytes);
  const std::size_t most = (lane.pieces.host.bytes() - kLineBytes) / sizeof(std::byte*);
  std::size_t count = 0, bytes = 0;
  for (const ChunkPart& part : parts) {
    if (part.pieces.size() > most - count) {
      return absl::InternalError(absl::StrCat("a chunk of more than ", most, " pieces"));
    }
    std::copy(part.pieces.begin(), part.pieces.end(), addresses + count);
    count += part.pieces.size();
    bytes += part.pieces.size() * part.piece_bytes;
  }
  if (bytes != payload.size() || bytes > lane.slot.bytes()) {
    return absl::InternalError(absl::StrCat("a payload of ", payload.size(), " bytes for ", bytes,
                                            " bytes of pieces and a slot of ", lane.slot.bytes()));
  }
  std::memset(lane.pieces.host.data(), 0, kLineBytes);
  KVF_RETURN_IF_ERROR(lane.pieces.Upload(kLineBytes + count * sizeof(std::byte*), lane.stream));
  // A payload that has landed on the GPU is read where it is.
  const std::byte* from = payload.data();
  if (!kernels::IsDeviceMemory(from)) {
    KVF_RETURN_IF_ERROR(
        kernels::CopyAsync(lane.slot.data(), payload.data(), payload.size(), lane.stream));
    from = lane.slot.data();
  }

  kernels::AdoptParams params = {.residues = lane.pieces.device.as<std::uint32_t>(),
                                 .tables = tables_.get()};
  auto to = reinterpret_cast<std::byte* const*>(lane.pieces.device.data() + kLineBytes);
  for (const ChunkPart& part : parts) {
    const std::size_t part_bytes = part.pieces.size() * part.piece_bytes;
    bytes -= part_bytes;
    params.parts[params.part_count++] = {.payload = from,
                                         .pages = to,
                                         .bytes = static_cast<std::uint32_t>(part_bytes),
                                         .page_bytes = static_cast<std::uint32_t>(part.piece_bytes),
                                         .after_units = static_cast<std::uint32_t>(bytes / kUnit)};
    from += part_bytes;
    to += part.pieces.size();
    if (params.part_count < kernels::kMaxAdoptParts && bytes > 0) continue;
    KVF_RETURN_IF_ERROR(kernels::LaunchAdoptChunk(params, lane.stream));
    params.part_count = 0;
  }
  return kernels::CopyAsync(lane.pieces.host.data(), lane.pieces.device.data(),
                            sizeof(std::uint32_t), lane.stream);
}

std::vector<absl::Status> DeviceCacheMemory::Flush(std::span<const FlushItem> all,
                                                   std::size_t sequences) {
  std::vector<absl::Status> statuses(sequences);
  absl::Status status = kernels::UseDevice(options_.gpu);
  std::vector<FlushItem> items(all.begin(), all.end());
  absl::MutexLock lock(&flush_mutex_);
  const std::size_t most = (flush_.host.bytes() - sizeof(FlushHeader)) / sizeof(QuantizeItem);
  for (std::size_t begin = 0; begin < items.size() && status.ok();) {
    const auto batch = std::span(items).subspan(begin, std::min(most, items.size() - begin));
    const absl::StatusOr<std::uint64_t> fault = LaunchFlush(batch);
    status = fault.status();
    if (!status.ok()) break;
    if (*fault == kernels::kNoFault) {
      begin += batch.size();
      continue;
    }
    // One launch tells of one fault: the others' pages are made once more without its sequence,
    // whose end this is.
    std::vector<codec::BlockOrigin> origins;
    for (const FlushItem& item : batch) origins.push_back(item.origin);
    const std::size_t at = kernels::FaultOf(*fault).item;
    if (at >= batch.size()) {
      status = kernels::FaultStatus(*fault, origins);
      break;
    }
    const std::size_t sequence = batch[at].sequence;
    statuses[sequence] = kernels::FaultStatus(*fault, origins);
    std::erase_if(items, [&](const FlushItem& item) { return item.sequence == sequence; });
    begin = 0;
  }
  if (!status.ok()) std::fill(statuses.begin(), statuses.end(), status);
  return statuses;
}

absl::StatusOr<std::uint64_t> DeviceCacheMemory::LaunchFlush(std::span<const FlushItem> items) {
  FlushHeader* const header = flush_.host.as<FlushHeader>();
  *header = {.first_fault = kernels::kNoFault, .item_count = static_cast<unsigned>(items.size())};
  QuantizeItem* const list = reinterpret_cast<QuantizeItem*>(header + 1);
  std::transform(items.begin(), items.end(), list, ItemOf);
  FlushHeader* const on_device = flush_.device.as<FlushHeader>();
  const auto enqueue = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(flush_mutex_) -> absl::Status {
    KVF_RETURN_IF_ERROR(
        flush_.Upload(sizeof(FlushHeader) + items.size() * sizeof(QuantizeItem), stream_));
    const FlushItem& first = items.front();  // a store's items differ in bits and layer alone
    KVF_ASSIGN_OR_RETURN(
        kernels::QuantizeParams params,
        kernels::QuantizeParamsOf(first.spec, first.window.type, first.origin.kv_head_begin,
                                  first.window.kv_heads));
    params.items = reinterpret_cast<const QuantizeItem*>(on_device + 1);
    params.max_items = static_cast<int>(items.size());
    params.item_count = &on_device->item_count;
    params.widths = WidthsOf(items);
    params.first_fault = &on_device->first_fault;
    KVF_RETURN_IF_ERROR(kernels::LaunchFlushWindow(params, stream_));
    return kernels::CopyAsync(&header->first_fault, &on_device->first_fault,
                              sizeof(header->first_fault), stream_);
  };
  const absl::Status enqueued = enqueue();
  const absl::Status done = stream_.Synchronize();
  KVF_RETURN_IF_ERROR(enqueued);
  KVF_RETURN_IF_ERROR(done);
  return header->first_fault;
}

}  // namespace kvferry::decode
