#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/quality/attention_probe.h"
#include "decode_node/cache_memory.h"
#include "decode_node/cache_store.h"
#include "decode_node/step_runner.h"
#include "kvcodec/backend.h"
#include "model/model.h"

namespace kvferry::bench {

class CacheBatch;

// A model with what serves it: on CPUs, or on one GPU. All that depends on which of them is here.
// Thread: one at a time, the one that opened it.
class Device {
 public:
  virtual ~Device() = default;

  // "cpu", or the GPU's: what records are of.
  virtual const std::string& name() const = 0;
  virtual model::Model& model() const = 0;
  // Of K and V as they leave this model.
  virtual const codec::Quantizer& quantizer() const = 0;
  // Where the payloads of a hand-off lie on their way.
  virtual std::span<std::byte> slot() const = 0;
  // Waits until the K and V of all prefills so far are there.
  virtual absl::Status WaitForPrefill() = 0;

  // For LibTorch: "cpu" or "cuda:N", and the stream of all work there, null on CPUs.
  virtual std::string torch_device() const = 0;
  virtual void* stream() const = 0;

  // OK, or kUnimplemented with the list of what can be quantized and attended on here.
  virtual absl::Status Supports(const codec::BlockSpec& spec) const = 0;
  // For stores whose batches have at most so many sequences. It dies before the device.
  virtual absl::StatusOr<std::unique_ptr<decode::CacheMemory>> MakeMemory(int max_sequences) = 0;
  // `store` is in such a memory and outlives the result.
  virtual absl::StatusOr<std::unique_ptr<decode::StepRunner>> MakeRunner(
      const decode::CacheStore& store, int max_sequences) = 0;
  // Both batches hold the same prompts and have the same 16-bit type. What the exact one does is
  // written down in `trace`, if the device can, and shown from there if there is no exact one. All
  // three outlive the probe.
  virtual absl::StatusOr<std::unique_ptr<AttentionProbe>> MakeProbe(CacheBatch* exact,
                                                                    CacheBatch& lossy,
                                                                    ProbeTrace& trace) = 0;

  codec::CacheGeometry geometry() const {
    const model::ModelConfig& config = model().config();
    return {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim};
  }
  std::size_t vocabulary() const { return static_cast<std::size_t>(model().config().vocabulary); }
};

// The same for every layer of a codec. kInvalidArgument: a codec that the model's shape does not
// allow.
absl::Status Supports(const Device& device, const codec::Codec& codec);

}  // namespace kvferry::bench
