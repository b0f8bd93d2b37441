#include "kernels/device_codebooks.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status_macros.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/status.h"
#include "kvcodec/codec.h"
#include "kvcodec/half.h"

namespace kvferry::kernels {
namespace {

constexpr std::size_t kAlign = 256;

struct Copy {
  DeviceBuffer memory;
  CoupledTables tables;
};

// Several arrays in one allocation.
class Packer {
 public:
  template <class T>
  std::size_t Add(std::span<const T> values) {
    const std::size_t at = (bytes_.size() + kAlign - 1) / kAlign * kAlign;
    bytes_.resize(at);
    const std::span<const std::byte> more = std::as_bytes(values);
    bytes_.insert(bytes_.end(), more.begin(), more.end());
    return at;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

absl::StatusOr<Copy> Upload(const codec::Codebooks& books) {
  const codec::KeyRotation& rotation = books.rotation();
  const std::size_t turns = static_cast<std::size_t>(codec::kBlockTokens) * rotation.half();
  const std::span<const float> cos(rotation.token_cos(), turns), sin(rotation.token_sin(), turns);
  const auto halves = [](std::span<const float> values) {
    std::vector<std::uint16_t> to;
    to.reserve(values.size());
    for (const float value : values) to.push_back(codec::HalfFromFloat(value));
    return to;
  };
  const std::vector<std::uint16_t> half_cos = halves(cos), half_sin = halves(sin);
  Packer packer;
  const std::size_t centroids = packer.Add(books.centroids());
  const std::size_t frequencies = packer.Add(rotation.frequencies());
  const std::size_t cos_at = packer.Add(cos), sin_at = packer.Add(sin);
  const std::size_t half_cos_at = packer.Add(std::span<const std::uint16_t>(half_cos));
  const std::size_t half_sin_at = packer.Add(std::span<const std::uint16_t>(half_sin));

  Copy copy;
  KVF_ASSIGN_OR_RETURN(copy.memory, DeviceBuffer::Allocate(packer.bytes().size()));
  KVF_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(copy.memory.data(), packer.bytes().data(),
                                            packer.bytes().size(), cudaMemcpyHostToDevice),
                                 "copying codebooks"));
  // It may return before the last bytes are there, and our streams do not wait for the default one.
  KVF_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(nullptr), "copying codebooks"));
  const std::byte* begin = copy.memory.data();
  const auto side = static_cast<std::int64_t>(books.shape().side_values());
  copy.tables = {.centroids = reinterpret_cast<const std::uint16_t*>(begin + centroids),
                 .frequencies = reinterpret_cast<const float*>(begin + frequencies),
                 .token_cos = reinterpret_cast<const float*>(begin + cos_at),
                 .token_sin = reinterpret_cast<const float*>(begin + sin_at),
                 .half_cos = reinterpret_cast<const std::uint16_t*>(begin + half_cos_at),
                 .half_sin = reinterpret_cast<const std::uint16_t*>(begin + half_sin_at),
                 .layer_values = side * 2 * books.shape().kv_heads,
                 .side_values = side};
  return copy;
}

struct Copies {
  absl::Mutex mutex;
  std::map<std::pair<int, std::uint64_t>, Copy> by_device_and_hash ABSL_GUARDED_BY(mutex);
};

}  // namespace

absl::StatusOr<CoupledTables> DeviceCodebooks(const codec::Codebooks& books) {
  static Copies* const copies = new Copies;  // the driver may be gone before statics are
  int device = 0;
  KVF_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "device of codebooks"));
  absl::MutexLock lock(&copies->mutex);
  const std::pair key(device, books.hash());
  auto found = copies->by_device_and_hash.find(key);
  if (found == copies->by_device_and_hash.end()) {
    KVF_ASSIGN_OR_RETURN(Copy copy, Upload(books));
    found = copies->by_device_and_hash.emplace(key, std::move(copy)).first;
  }
  return found->second.tables;
}

}  // namespace kvferry::kernels
