#include "kernels/chunk_checker.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/adopt_chunk.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/status.h"

namespace kvferry::kernels {

absl::StatusOr<std::unique_ptr<ChunkChecker>> ChunkChecker::Create() {
  int device = 0;
  KVF_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "cudaGetDevice"));
  KVF_ASSIGN_OR_RETURN(Stream stream, Stream::Create(/*priority=*/-1));  // somebody waits for it
  KVF_ASSIGN_OR_RETURN(DeviceCheckTables tables, DeviceCheckTables::Create(stream));
  KVF_ASSIGN_OR_RETURN(PinnedBuffer host, PinnedBuffer::Allocate(sizeof(std::uint32_t)));
  KVF_ASSIGN_OR_RETURN(DeviceBuffer residue, DeviceBuffer::Allocate(sizeof(std::uint32_t)));
  return std::unique_ptr<ChunkChecker>(new ChunkChecker(
      device, std::move(stream), std::move(tables), std::move(host), std::move(residue)));
}

absl::StatusOr<std::uint32_t> ChunkChecker::Check(std::span<const std::byte> payload) {
  return Adopt(payload, nullptr, kCheckUnitBytes);
}

absl::StatusOr<std::uint32_t> ChunkChecker::Adopt(std::span<const std::byte> payload,
                                                  std::byte* const* pages, std::size_t page_bytes) {
  if (payload.size() > kCheckMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a chunk of ", payload.size(), " bytes; a GPU checks at most ", kCheckMaxBytes));
  }
  KVF_RETURN_IF_ERROR(UseDevice(device_));
  absl::MutexLock lock(&mutex_);
  const auto enqueue = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    KVF_RETURN_IF_ERROR(FillAsync(residue_.data(), std::byte{0}, sizeof(std::uint32_t), stream_));
    AdoptParams params{.part_count = payload.empty() ? 0 : 1,
                       .residues = residue_.as<std::uint32_t>(),
                       .tables = tables_.get()};
    params.parts[0] = {.payload = payload.data(),
                       .pages = pages,
                       .bytes = static_cast<std::uint32_t>(payload.size()),
                       .page_bytes = static_cast<std::uint32_t>(page_bytes)};
    KVF_RETURN_IF_ERROR(LaunchAdoptChunk(params, stream_));
    return CopyAsync(host_.data(), residue_.data(), sizeof(std::uint32_t), stream_);
  };
  const absl::Status enqueued = enqueue();
  const absl::Status done = stream_.Synchronize();
  KVF_RETURN_IF_ERROR(enqueued);
  KVF_RETURN_IF_ERROR(done);
  return FinishChunkCheck(*host_.as<std::uint32_t>(), payload.size());
}

}  // namespace kvferry::kernels
