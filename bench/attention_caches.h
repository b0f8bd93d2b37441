#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/stream.h"
#include "kernels/decode_attention.h"
#include "kvcodec/codec.h"
#include "kvcodec/plan.h"

// What benches of decode attention attend on: head_dim 128, 32 query heads on 8 KV heads, 4 sinks,
// a window of 64..127 tokens. Random values, quantized by the production kernel; pages at shuffled
// places.
namespace kvferry::bench {

inline constexpr int kKvHeads = 8, kQHeads = 32, kHeadDim = 128;
inline constexpr codec::WindowSpec kWindow = {.sinks = 4, .recent = 64};

// Sequences of so many tokens each.
struct CacheShape {
  int batch, tokens;
  std::string name() const;  // "8 x 32k"
};

// Halves of a normal distribution, every 16th three times as large; always the same.
std::vector<std::uint16_t> RandomHalves(std::size_t count);

// The compressed caches of one shape and codec, several copies of them, and what attends on them.
// Thread: one, on the device of `stream`.
class AttentionCaches {
 public:
  // So many copies that they are more than three times `l2_bytes`. Waits for the stream.
  // kUnimplemented: attention on such blocks is not compiled. kResourceExhausted: device memory.
  static absl::StatusOr<std::unique_ptr<AttentionCaches>> Create(const codec::BlockSpec& spec,
                                                                 const CacheShape& shape,
                                                                 std::size_t l2_bytes,
                                                                 kernels::Stream& stream);

  int copies() const { return copies_; }
  int pages() const { return plan_.blocks * shape_.batch; }  // of a copy
  // What one call reads of blocks; sinks and windows are not counted.
  double block_bytes() const { return static_cast<double>(pages()) * page_bytes_; }
  // The pages of a copy, in device memory.
  const std::byte* const* table(int copy) const {
    return table_.as<const std::byte*>() + static_cast<std::size_t>(pages()) * copy;
  }

  // Attention of one token of each sequence, asynchronous on `stream`.
  //   early: as a decode worker does, before the kernel ahead has ended.
  absl::Status Launch(int copy, bool early, kernels::Stream& stream);

 private:
  AttentionCaches(const codec::BlockSpec& spec, const CacheShape& shape);
  absl::Status Fill(std::size_t l2_bytes, kernels::Stream& stream);
  // 64 different pages.
  absl::StatusOr<kernels::DeviceBuffer> QuantizeSome(kernels::Stream& stream);

  const codec::BlockSpec spec_;
  const CacheShape shape_;
  const codec::BlockPlan plan_;
  const std::size_t page_bytes_;
  int copies_ = 0;
  kernels::DeviceBuffer pool_, table_, sinks_, windows_, sequences_, q_, out_;
  std::unique_ptr<kernels::DecodeAttention> attention_;
};

}  // namespace kvferry::bench
