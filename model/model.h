#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcodec/kv_view.h"
#include "model/model_config.h"

// A Llama-family transformer. Tensors stay inside this folder: what leaves are token ids, logits
// and KvViews.
namespace kvferry::model {

enum class ComputeType { kFp32, kBf16 };

struct LoadOptions {
  std::string path;  // a .gguf file or a Hugging Face directory
  // `path` is a config.json, and the weights are random: for benchmarks of a shape.
  bool random_weights = false;
  ComputeType compute = ComputeType::kFp32;
  int threads = 0;  // of LibTorch in this process; 0: all cores
  // "cpu" or "cuda:N". On a GPU, K and V leave in its memory, and all work goes to `stream`, a
  // cudaStream_t of that GPU which outlives the model.
  std::string device = "cpu";
  void* stream = nullptr;
};

// The attention of one decode step, by whoever owns the cache. Called once per layer, in order, on
// the caller's thread.
class DecodeAttention {
 public:
  virtual ~DecodeAttention() = default;
  // Which 16-bit type `k` and `v` come in.
  virtual codec::Raw16 raw_type() const = 0;
  // Appends the new token's K and V of each sequence to its window, then attends.
  //   q: [sequences, q_heads, head_dim] fp32, after RoPE. k, v: [sequences, kv_heads, head_dim] 16
  //   bit, k after RoPE. out: [sequences, q_heads, head_dim] fp32.
  virtual absl::Status AppendAndAttend(int layer, const float* q, const std::uint16_t* k,
                                       const std::uint16_t* v, float* out) = 0;
};

// The same for a cache in the memory of the model's GPU: all pointers are of that memory, 16-byte
// aligned, and everything happens in the order of LoadOptions::stream, of which nothing is waited
// for.
class DeviceDecodeAttention {
 public:
  virtual ~DeviceDecodeAttention() = default;
  // The 16-bit type of all values.
  virtual codec::Raw16 raw_type() const = 0;
  //   q, out: [sequences, q_heads, head_dim]. k, v: [sequences, kv_heads, head_dim]. All
  //   contiguous; q and k after RoPE.
  virtual absl::Status AppendAndAttend(int layer, const std::uint16_t* q, const std::uint16_t* k,
                                       const std::uint16_t* v, std::uint16_t* out) = 0;
};

// Decode steps on a GPU, each in three parts, so that the one in the middle can be a CUDA graph.
// All of it is enqueued on LoadOptions::stream. After an error, work may still be on the stream.
// Thread: one at a time, and no prefill of the same model meanwhile.
class DeviceSteps {
 public:
  virtual ~DeviceSteps() = default;

  // One token for each sequence; positions: of those tokens. Copied before this returns. Waits for
  // nothing: the step before has been waited for (FetchLogits, or the stream after an error).
  virtual absl::Status SetInputs(std::span<const std::int32_t> tokens,
                                 std::span<const std::int32_t> positions) = 0;
  // From the inputs to the logits, which stay on the GPU. Waits for nothing. What has run once for
  // a number of sequences may be captured for it, and replayed while memory_epoch() stays.
  virtual absl::Status Enqueue() = 0;
  // Waits for the stream. logits: [sequences, vocabulary] fp32.
  virtual absl::Status FetchLogits(std::span<float> logits) = 0;
  // Changes when memory that an earlier Enqueue worked in was given back to the driver.
  virtual std::uint64_t memory_epoch() const = 0;
};

// One prompt on its way through the model, with exact attention over its own uncompressed K and V,
// in chunks. Thread: one at a time.
class PrefillSession {
 public:
  virtual ~PrefillSession() = default;

  // After layer `layer` of this chunk: `kv` covers all tokens of the prompt so far, [kv_heads,
  // tokens, head_dim], valid until the session dies; values of earlier tokens never change. On a
  // GPU it is in device memory, and the values are there in the order of the stream: what reads
  // them waits for an event recorded now. A status that is not OK ends the run with it.
  using OnLayer = std::function<absl::Status(int layer, const codec::KvView& kv)>;

  // Appends `tokens`. kInvalidArgument: an id outside the vocabulary, or more than max_tokens in
  // all.
  virtual absl::Status Run(std::span<const std::int32_t> tokens, const OnLayer& on_layer) = 0;
  // The same of a chunk that another one follows: makes no logits. A GPU may still compute it when
  // this returns, but not the chunk before: so it never waits for the next one.
  virtual absl::Status RunAhead(std::span<const std::int32_t> tokens, const OnLayer& on_layer) = 0;
  // The same without a look at K and V, and what the model thinks after each of `tokens`: what a
  // lossy cache is compared with. logits: [tokens, vocabulary] fp32; kInvalidArgument: another
  // size.
  virtual absl::Status Score(std::span<const std::int32_t> tokens, std::span<float> logits) = 0;
  // Of the last token, by Run or Score: [vocabulary].
  virtual std::span<const float> logits() const = 0;
  // Forgets all but the first `tokens`, so that another continuation can be run; their K and V stay
  // where they are, views of later ones end, and logits() has none until the next run.
  // kInvalidArgument: negative, or more than there are.
  virtual absl::Status Rewind(int tokens) = 0;
};

// Weights and the forward pass. DecodeAttention gets host memory, also from a model on a GPU.
// Thread: PrefillSessions and decode steps of one Model may not run at the same time.
class Model {
 public:
  virtual ~Model() = default;

  // kNotFound, kInvalidArgument (names file and field: unknown architecture, tensor type, shape),
  // kDataLoss (truncated, corrupt), kUnavailable (no such GPU, or LibTorch has no CUDA).
  static absl::StatusOr<std::unique_ptr<Model>> Load(const LoadOptions& options);

  virtual const ModelConfig& config() const = 0;
  // Of names, shapes and bytes of all tensors as stored.
  virtual std::uint64_t weights_hash() const = 0;

  // For a prompt of at most `max_tokens` tokens, whose K and V leave as `type`.
  virtual absl::StatusOr<std::unique_ptr<PrefillSession>> StartPrefill(int max_tokens,
                                                                       codec::Raw16 type) = 0;

  // One token for each sequence. positions: of those tokens. logits: [sequences, vocabulary] fp32.
  virtual absl::Status DecodeStep(std::span<const std::int32_t> tokens,
                                  std::span<const std::int32_t> positions,
                                  DecodeAttention& attention, std::span<float> logits) = 0;
  // Decode steps with a cache on the model's GPU, which `attention` knows and outlives them.
  // kUnimplemented: this model does not compute on a device. kResourceExhausted: device memory.
  virtual absl::StatusOr<std::unique_ptr<DeviceSteps>> StartDeviceSteps(
      int /*max_sequences*/, DeviceDecodeAttention& /*attention*/) {
    return absl::UnimplementedError("this model has no decode steps on a device");
  }
};

}  // namespace kvferry::model
