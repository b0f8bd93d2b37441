#include "kernels/cuda_quantizer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/crc32c.h"
#include "common/status_macros.h"
#include "kernels/chunk_check.h"
#include "kernels/chunk_checker.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/event.h"
#include "kernels/cuda/status.h"
#include "kernels/quantize_block.h"
#include "kvcodec/format.h"

namespace kvferry::kernels {
namespace {

using codec::BlockOrigin;
using codec::BlockSpec;
using codec::kBlockTokens;
using codec::KvView;
using codec::PageRun;

// Marks that can be waited for one by one. An older one shares the event of a newer one, which
// stands later in the same stream: waiting for it is waiting for both.
constexpr std::size_t kMarks = 256;
constexpr absl::Duration kPollInterval = absl::Microseconds(20);

bool IsPageAddress(const std::byte* at) {
  return reinterpret_cast<std::uintptr_t>(at) % codec::format::kAlignBytes == 0;
}

// Runs of consecutive layers that differ in nothing but bits and place: their pages in one launch.
struct Launch {
  const PageRun* first = nullptr;
  Widths widths = 0;
  std::vector<QuantizeItem> items;
  std::vector<BlockOrigin> origins;  // of the items
};

bool OneLaunch(const PageRun& a, const PageRun& b) {
  const auto form = [](BlockSpec spec) {
    spec.layer = 0;
    if (spec.kind == codec::BlockKind::kScalar) spec.k_bits = spec.v_bits = 0;
    return spec;
  };
  return form(a.spec) == form(b.spec) && a.kv.type == b.kv.type && a.kv.kv_heads == b.kv.kv_heads &&
         a.origin.kv_head_begin == b.origin.kv_head_begin;
}

void AddPages(const PageRun& run, std::byte*& page, std::size_t& bytes_after, Launch& launch) {
  const std::size_t page_bytes = codec::PageBytes(run.spec, run.kv.kv_heads);
  for (int row = 0; row < run.kv.tokens; row += kBlockTokens) {
    bytes_after -= page_bytes;
    launch.origins.push_back(run.origin);
    launch.origins.back().token_begin += row;
    launch.items.push_back(
        {.k = run.kv.k,
         .v = run.kv.v,
         .page = page,
         .head_stride = run.kv.head_stride,
         .token_stride = static_cast<std::int32_t>(run.kv.token_stride),
         .token = launch.origins.back().token_begin,
         .first_row = row,
         .k_bits = static_cast<std::uint8_t>(run.spec.k_bits),
         .v_bits = static_cast<std::uint8_t>(run.spec.v_bits),
         .layer = static_cast<std::uint16_t>(run.spec.layer),
         .after_units = static_cast<std::uint32_t>(bytes_after / kCheckUnitBytes)});
    page += page_bytes;
  }
}

// pages: where the first one goes, of `bytes` in all.
std::vector<Launch> Split(std::span<const PageRun> runs, std::byte* pages, std::size_t bytes) {
  std::vector<Launch> launches;
  for (const PageRun& run : runs) {
    if (run.kv.tokens == 0) continue;
    if (launches.empty() || !OneLaunch(*launches.back().first, run)) {
      launches.push_back({.first = &run, .widths = 0, .items = {}, .origins = {}});
    }
    Launch& launch = launches.back();
    launch.widths |= WidthsOf(run.spec);
    AddPages(run, pages, bytes, launch);
  }
  return launches;
}

class CudaQuantizer final : public codec::Quantizer {
 public:
  CudaQuantizer(int device, Stream& producer, Stream stream, std::vector<Event> marks,
                DeviceCheckTables tables, std::unique_ptr<ChunkChecker> checker)
      : device_(device),
        producer_(producer),
        stream_(std::move(stream)),
        marks_(std::move(marks)),
        tables_(std::move(tables)),
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

  absl::StatusOr<std::uint32_t> QuantizeRuns(std::span<const PageRun> runs,
                                             std::span<std::byte> out) const override {
    KVF_RETURN_IF_ERROR(codec::CheckRuns(runs, out.size()));
    for (const PageRun& run : runs) KVF_RETURN_IF_ERROR(Supports(run.spec));
    if (out.size() > kCheckMaxBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "pages of ", out.size(), " bytes at once; a GPU checks at most ", kCheckMaxBytes));
    }
    if (out.empty()) return Crc32c(out);
    KVF_RETURN_IF_ERROR(UseThisDevice());
    for (const PageRun& run : runs) KVF_RETURN_IF_ERROR(AwaitReady(run.kv));
    absl::MutexLock lock(&mutex_);
    // Where they stay, or from where they are copied.
    const bool in_place = IsDeviceMemory(out.data()) && IsPageAddress(out.data());
    if (!in_place) KVF_RETURN_IF_ERROR(MakeRoom(pages_, out.size()));
    const std::vector<Launch> launches =
        Split(runs, in_place ? out.data() : pages_.data(), out.size());
    KVF_RETURN_IF_ERROR(MakeRoom(launches));
    absl::Status enqueued = Enqueue(launches);
    if (enqueued.ok() && !in_place) {
      enqueued = CopyAsync(out.data(), pages_.data(), out.size(), stream_);
    }
    KVF_RETURN_IF_ERROR(Finish(enqueued));
    const auto* result = host_call_.as<const std::uint64_t>();
    for (std::size_t i = 0; i < launches.size(); ++i) {
      KVF_RETURN_IF_ERROR(FaultStatus(result[1 + i], launches[i].origins));
    }
    return FinishChunkCheck(static_cast<std::uint32_t>(result[0]), out.size());
  }

  absl::Status CopyTokens(const KvView& kv, std::span<std::byte> out) const override {
    const std::size_t row = sizeof(std::uint16_t) * kv.head_dim;
    if (out.size() != codec::Raw16Bytes(kv.tokens, kv.kv_heads, kv.head_dim)) {
      return absl::InvalidArgumentError(
          absl::StrCat(kv.tokens, " tokens into ", out.size(), " bytes"));
    }
    if (kv.tokens == 0) return absl::OkStatus();
    KVF_RETURN_IF_ERROR(UseThisDevice());
    KVF_RETURN_IF_ERROR(AwaitReady(kv));
    absl::MutexLock lock(&mutex_);
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

  static absl::Status MakeRoom(DeviceBuffer& buffer, std::size_t bytes) {
    if (buffer.bytes() >= bytes) return absl::OkStatus();
    buffer = DeviceBuffer();  // two at once may be more than there is
    KVF_ASSIGN_OR_RETURN(buffer, DeviceBuffer::Allocate(bytes));
    return absl::OkStatus();
  }

  // On the host: while a stream waits for another one's event, every kernel of that one begins
  // later (2.8 us after the one before instead of 1.5, H200).
  absl::Status AwaitReady(const KvView& kv) const {
    bool reached = kv.ready == 0;
    while (!reached) {
      {
        absl::MutexLock lock(&marks_mutex_);
        KVF_ASSIGN_OR_RETURN(reached, marks_[kv.ready % kMarks].Reached());
      }
      if (!reached) absl::SleepFor(kPollInterval);
    }
    return absl::OkStatus();
  }

  static std::size_t ResultBytes(std::span<const Launch> launches) {
    return sizeof(std::uint64_t) * (1 + launches.size());
  }
  static std::size_t ItemsAt(std::span<const Launch> launches) {
    constexpr std::size_t kAlign = alignof(QuantizeItem);
    return (ResultBytes(launches) + kAlign - 1) / kAlign * kAlign;
  }

  absl::Status MakeRoom(std::span<const Launch> launches) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::size_t bytes = ItemsAt(launches);
    for (const Launch& launch : launches) bytes += launch.items.size() * sizeof(QuantizeItem);
    KVF_RETURN_IF_ERROR(MakeRoom(call_, bytes));
    if (host_call_.bytes() >= bytes) return absl::OkStatus();
    KVF_ASSIGN_OR_RETURN(host_call_, PinnedBuffer::Allocate(bytes));
    return absl::OkStatus();
  }

  // With the results on their way to the host. What the kernels read and add to goes to the GPU in
  // one copy: each further one, and each word that is cleared there, takes as long as a kernel.
  absl::Status Enqueue(std::span<const Launch> launches) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto* result = host_call_.as<std::uint64_t>();
    *result = 0;
    std::fill_n(result + 1, launches.size(), kNoFault);
    auto* item = reinterpret_cast<QuantizeItem*>(host_call_.data() + ItemsAt(launches));
    for (const Launch& launch : launches) {
      item = std::copy(launch.items.begin(), launch.items.end(), item);
    }
    const auto bytes =
        static_cast<std::size_t>(reinterpret_cast<std::byte*>(item) - host_call_.data());
    KVF_RETURN_IF_ERROR(CopyAsync(call_.data(), host_call_.data(), bytes, stream_));
    auto* items = reinterpret_cast<QuantizeItem*>(call_.data() + ItemsAt(launches));
    auto* first_fault = call_.as<std::uint64_t>();
    for (const Launch& launch : launches) {
      KVF_RETURN_IF_ERROR(Enqueue(launch, items, ++first_fault));
      items += launch.items.size();
    }
    return CopyAsync(host_call_.data(), call_.data(), ResultBytes(launches), stream_);
  }

  absl::Status Enqueue(const Launch& launch, const QuantizeItem* items,
                       std::uint64_t* first_fault) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const PageRun& run = *launch.first;
    KVF_ASSIGN_OR_RETURN(
        QuantizeParams params,
        QuantizeParamsOf(run.spec, run.kv.type, run.origin.kv_head_begin, run.kv.kv_heads));
    params.items = items;
    params.max_items = static_cast<int>(launch.items.size());
    params.widths = launch.widths;
    params.first_fault = first_fault;
    params.residues = call_.as<std::uint32_t>();
    params.tables = tables_.get();
    return LaunchQuantizeBlock(params, stream_);
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
  mutable DeviceBuffer pages_ ABSL_GUARDED_BY(mutex_);
  // Of a call: words of 64 bits, the residue of the pages and the first fault of every launch; then
  // the items.
  mutable DeviceBuffer call_ ABSL_GUARDED_BY(mutex_);
  mutable PinnedBuffer host_call_ ABSL_GUARDED_BY(mutex_);
  mutable absl::Mutex marks_mutex_;
  mutable std::vector<Event> marks_ ABSL_GUARDED_BY(marks_mutex_);
  mutable std::uint64_t last_mark_ ABSL_GUARDED_BY(marks_mutex_) = 0;
  const DeviceCheckTables tables_;
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
  KVF_ASSIGN_OR_RETURN(DeviceCheckTables tables, DeviceCheckTables::Create(stream));
  KVF_ASSIGN_OR_RETURN(std::unique_ptr<ChunkChecker> checker, ChunkChecker::Create());
  return std::make_unique<CudaQuantizer>(device, producer, std::move(stream), std::move(marks),
                                         std::move(tables), std::move(checker));
}

}  // namespace kvferry::kernels
