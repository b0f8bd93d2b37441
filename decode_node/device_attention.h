#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "decode_node/cache_store.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"
#include "kernels/decode_attention.h"
#include "model/model.h"

namespace kvferry::decode {

// The attention of decode steps over a cache in the memory of one GPU, all on one stream: one copy
// of what the step is about, one plan per kind of layer, then an append and an attention per layer.
// The addresses of everything that a step reads stay for life. Thread: one at a time.
class DeviceAttention final : public model::DeviceDecodeAttention {
 public:
  using MakeAttention = std::function<absl::StatusOr<std::unique_ptr<kernels::DecodeAttention>>(
      const kernels::AttentionConfig&)>;

  // On the calling thread's device, `gpu` for messages. store and stream outlive it; the store is
  // on that GPU. kUnimplemented: no attention kernel for the codec and shape, with the list of
  // those that there are. kResourceExhausted: device memory.
  static absl::StatusOr<std::unique_ptr<DeviceAttention>> Create(
      int gpu, int max_sequences, int q_heads, const CacheStore& store, kernels::Stream& stream,
      const MakeAttention& make_attention);

  // Makes room for one more token in each sequence, and enqueues all that the layers of this step
  // read. What the step before enqueued has been waited for.
  absl::Status Begin(std::span<StoredSequence* const> sequences);

  // The launch_kind of each kind of layer, after Begin: as fixed in a captured step as the number
  // of sequences.
  std::vector<int> launch_kinds() const;

  codec::Raw16 raw_type() const override { return store_.codec().raw_type; }
  absl::Status AppendAndAttend(int layer, const std::uint16_t* q, const std::uint16_t* k,
                               const std::uint16_t* v, std::uint16_t* out) override;

 private:
  DeviceAttention(int gpu, int max_sequences, int q_heads, const CacheStore& store,
                  kernels::Stream& stream)
      : gpu_(gpu),
        max_sequences_(max_sequences),
        q_heads_(q_heads),
        store_(store),
        stream_(stream) {}

  absl::Status MakeAttentions(const MakeAttention& make_attention);
  absl::Status AllocateInputs();
  // Fills inputs_host_ and lengths_; returns how many rows there are.
  int DescribeBatch(std::span<StoredSequence* const> sequences);

  const int gpu_;
  const int max_sequences_;
  const int q_heads_;
  const CacheStore& store_;
  kernels::Stream& stream_;

  std::vector<std::unique_ptr<kernels::DecodeAttention>> attentions_;  // one per kind of layer
  std::vector<std::size_t> attention_of_layer_;

  // [max_sequences] AttentionSequence, [max_sequences] AppendTarget, then the rows of all
  // sequences: on the host and, by one copy, on the GPU.
  kernels::PinnedBuffer inputs_host_;
  kernels::DeviceBuffer inputs_;
  kernels::DeviceBuffer page_layers_;  // [layers] PageLayer
  kernels::DeviceBuffer page_table_;   // [layers, rows of the store] addresses

  std::vector<kernels::AttentionLength> lengths_;  // of the step
  int sequences_ = 0;
};

}  // namespace kvferry::decode
