#include "kernels/cuda_quantizer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "kernels/chunk_checker.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/status.h"
#include "kernels/quantize_block.h"

namespace kvferry::kernels {
namespace {

using codec::BlockOrigin;
using codec::BlockSpec;
using codec::kBlockTokens;
using codec::KvView;

// Marks that can be waited for one by one. An older one shares the event of a newer one, which
// stands later in the same stream: waiting for it is waiting for both.
constexpr std::size_t kMarks = 256;

class CudaQuantizer final : public codec::Quantizer {
 public:
  CudaQuantizer(int device, Stream& producer, Stream stream, std::vector<Event> marks,
                DeviceBuffer fault, std::unique_ptr<ChunkChecker> checker)
      : device_(device),
        producer_(producer),
        stream_(std::move(stream)),
        marks_(std::move(marks)),
        fault_(std::move(fault)),
        checker_(std::move(checker)) {}

  std::string name() const override { return "cuda"; }
  absl::Status Supports(const BlockSpec& spec) const override { return SupportsQuantize(spec); }

  absl::Status Quantize(const KvView& kv, const BlockSpec& spec, const BlockOrigin& origin,
                        std::span<std::byte> page) const override {
    if (kv.tokens != kBlockTokens) {
      return absl::InvalidArgumentError(absl::StrCat(kv.tokens, " tokens; a page has 64"));
    }
    return QuantizePages(kv, spec, origin, page);
  }

  absl::Status QuantizePages(const KvView& kv, const BlockSpec& spec, const BlockOrigin& origin,
                             std::span<std::byte> pages) const override {
    KVF_RETURN_IF_ERROR(Supports(spec));
    const std::size_t page_bytes = codec::PageBytes(spec, kv.kv_heads);
    const int count = kv.tokens / kBlockTokens;
    if (kv.tokens % kBlockTokens != 0 || kv.head_dim != spec.head_dim ||
        pages.size() != count * page_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(kv.tokens, " tokens of ", kv.head_dim, " channels into ", pages.size(),
                       " bytes; pages of ", spec.head_dim, " channels have 64 tokens and ",
                       page_bytes, " bytes each"));
    }
    if (count == 0) return absl::OkStatus();
    absl::MutexLock lock(&mutex_);
    KVF_RETURN_IF_ERROR(UseThisDevice());
    KVF_ASSIGN_OR_RETURN(const CoupledQuantize coupled,
                         CoupledOf(spec, origin.kv_head_begin, kv.kv_heads));
    KVF_RETURN_IF_ERROR(Begin(kv, pages.size(), count));
    std::vector<QuantizeItem> items;
    std::vector<BlockOrigin> origins;
    for (int i = 0; i < count; ++i) {
      items.push_back({.k = kv.k,
                       .v = kv.v,
                       .page = pages_.data() + i * page_bytes,
                       .head_stride = kv.head_stride,
                       .token_stride = static_cast<std::int32_t>(kv.token_stride),
                       .token = origin.token_begin + i * kBlockTokens,
                       .first_row = i * kBlockTokens,
                       .k_bits = static_cast<std::uint8_t>(spec.k_bits),
                       .v_bits = static_cast<std::uint8_t>(spec.v_bits),
                       .layer = static_cast<std::uint16_t>(spec.layer)});
      origins.push_back(origin);
      origins.back().token_begin += i * kBlockTokens;
    }
    std::uint64_t fault = kNoFault;
    const auto enqueue = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
      KVF_RETURN_IF_ERROR(
          CopyAsync(items_.data(), items.data(), items.size() * sizeof(items[0]), stream_));
      KVF_RETURN_IF_ERROR(FillAsync(fault_.data(), std::byte{0xff}, sizeof(kNoFault), stream_));
      KVF_RETURN_IF_ERROR(LaunchQuantizeBlock(
          {.items = items_.as<const QuantizeItem>(),
           .max_items = count,
           .kv_heads = kv.kv_heads,
           .head_dim = spec.head_dim,
           .kind = spec.kind,
           .type = kv.type,
           .k_group_tokens = spec.k_group_tokens,
           .v_group_channels = spec.v_group_channels,
           .table = spec.table,
           .coupled = coupled,
           .max_bits =
               spec.kind == codec::BlockKind::kScalar ? std::max(spec.k_bits, spec.v_bits) : 8,
           .first_fault = fault_.as<std::uint64_t>()},
          stream_));
      KVF_RETURN_IF_ERROR(CopyAsync(&fault, fault_.data(), sizeof(fault), stream_));
      return CopyAsync(pages.data(), pages_.data(), pages.size(), stream_);
    };
    KVF_RETURN_IF_ERROR(Finish(enqueue()));
    return FaultStatus(fault, origins);
  }

  absl::Status CopyTokens(const KvView& kv, std::span<std::byte> out) const override {
    const std::size_t row = sizeof(std::uint16_t) * kv.head_dim;
    if (out.size() != codec::Raw16Bytes(kv.tokens, kv.kv_heads, kv.head_dim)) {
      return absl::InvalidArgumentError(
          absl::StrCat(kv.tokens, " tokens into ", out.size(), " bytes"));
    }
    if (kv.tokens == 0) return absl::OkStatus();
    absl::MutexLock lock(&mutex_);
    KVF_RETURN_IF_ERROR(Begin(kv, 0, 0));
    const auto enqueue = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
      std::byte* to = out.data();
      for (const std::uint16_t* side : {kv.k, kv.v}) {
        for (int head = 0; head < kv.kv_heads; ++head, to += row * kv.tokens) {
          KVF_RETURN_IF_ERROR(
              CudaStatus(cudaMemcpy2DAsync(to, row, side + head * kv.head_stride,
                                           sizeof(std::uint16_t) * kv.token_stride, row, kv.tokens,
                                           cudaMemcpyDefault, stream_.get()),
                         "copy of 16-bit tokens"));
        }
      }
      return absl::OkStatus();
    };
    return Finish(enqueue());
  }

  absl::StatusOr<std::uint32_t> Check(std::span<const std::byte> bytes) const override {
    if (IsDeviceMemory(bytes.data())) return checker_->Check(bytes);
    return Crc32c(bytes);
  }

  std::uint64_t MarkReady() const override {
    absl::MutexLock lock(&marks_mutex_);
    const std::uint64_t mark = ++last_mark_;
    // An error here is one of the context, which the call that waits for the mark meets again.
    if (UseThisDevice().ok()) marks_[mark % kMarks].Record(producer_).IgnoreError();
    return mark;
  }

 private:
  absl::Status UseThisDevice() const {
    return CudaStatus(cudaSetDevice(device_), absl::StrCat("use of GPU ", device_));
  }

  // The calling thread works on the device, the stream waits for `kv`, and there is room.
  absl::Status Begin(const KvView& kv, std::size_t bytes, int items) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    KVF_RETURN_IF_ERROR(UseThisDevice());
    if (pages_.bytes() < bytes) {
      pages_ = DeviceBuffer();  // two at once may be more than there is
      KVF_ASSIGN_OR_RETURN(pages_, DeviceBuffer::Allocate(bytes));
    }
    if (items_.bytes() < items * sizeof(QuantizeItem)) {
      KVF_ASSIGN_OR_RETURN(items_, DeviceBuffer::Allocate(items * sizeof(QuantizeItem)));
    }
    if (kv.ready == 0) return absl::OkStatus();
    absl::MutexLock lock(&marks_mutex_);
    return stream_.Wait(marks_[kv.ready % kMarks]);
  }

  // After an error, too, nothing of the call may go on: the caller's memory is its own again.
  absl::Status Finish(const absl::Status& enqueued) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Status done = stream_.Synchronize();
    return enqueued.ok() ? done : enqueued;
  }

  const int device_;
  Stream& producer_;
  mutable absl::Mutex mutex_;
  mutable Stream stream_ ABSL_GUARDED_BY(mutex_);
  mutable DeviceBuffer items_ ABSL_GUARDED_BY(mutex_), pages_ ABSL_GUARDED_BY(mutex_);
  mutable absl::Mutex marks_mutex_ ABSL_ACQUIRED_AFTER(mutex_);
  mutable std::vector<Event> marks_ ABSL_GUARDED_BY(marks_mutex_);
  mutable std::uint64_t last_mark_ ABSL_GUARDED_BY(marks_mutex_) = 0;
  DeviceBuffer fault_;  // one word
  const std::unique_ptr<ChunkChecker> checker_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<codec::Quantizer>> CreateCudaQuantizer(Stream& producer) {
  int device = 0;
  KVF_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "cudaGetDevice"));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
  std::vector<Event> marks;
  for (std::size_t i = 0; i < kMarks; ++i) {
    KVF_ASSIGN_OR_RETURN(Event mark, Event::Create());
    marks.push_back(std::move(mark));
  }
  KVF_ASSIGN_OR_RETURN(DeviceBuffer fault, DeviceBuffer::Allocate(sizeof(kNoFault)));
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<ChunkChecker> checker, ChunkChecker::Create());
  return std::make_unique<CudaQuantizer>(device, producer, std::move(stream), std::move(marks),
                                         std::move(fault), std::move(checker));
}

}  // namespace kvferry::kernels
