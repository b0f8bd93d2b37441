#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvcodec/codebooks.h"

// The codebooks of coupled blocks in the memory of a GPU.
namespace kvferry::kernels {

// As kernels read them. All pointers are in device memory.
struct CoupledTables {
  // Halves, [layer][kv_head][K, V][group][code][channel of the group].
  const std::uint16_t* centroids = nullptr;
  const float* frequencies = nullptr;  // [head_dim / 2]
  // cos and sin of the tokens of a block from its first on, [64][head_dim / 2]: in fp32, and as
  // halves.
  const float* token_cos = nullptr;
  const float* token_sin = nullptr;
  const std::uint16_t* half_cos = nullptr;
  const std::uint16_t* half_sin = nullptr;
  std::int64_t layer_values = 0;  // of `centroids`
  std::int64_t side_values = 0;
};

// On the calling thread's device. The first call for a device and a hash copies, and waits for the
// device; the copy stays for the life of the process, as codebooks do in a worker.
// kResourceExhausted: device memory. Thread: any.
absl::StatusOr<CoupledTables> DeviceCodebooks(const codec::Codebooks& books);

}  // namespace kvferry::kernels
