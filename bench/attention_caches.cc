#include "bench/attention_caches.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/quantize_block.h"
#include "kvcodec/half.h"

namespace kvferry::bench {
namespace {

using kernels::DeviceBuffer;
using kernels::Stream;

std::int64_t WindowValues() {
  return std::int64_t{2} * kKvHeads * codec::WindowCapacity(kWindow) * kHeadDim;
}

template <class T>
absl::StatusOr<DeviceBuffer> Upload(const std::vector<T>& values, Stream& stream) {
  KVF_ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Allocate(values.size() * sizeof(T)));
  KVF_RETURN_IF_ERROR(
      kernels::CopyAsync(buffer.data(), values.data(), values.size() * sizeof(T), stream));
  KVF_RETURN_IF_ERROR(stream.Synchronize());
  return buffer;
}

}  // namespace

std::string CacheShape::name() const {
  return tokens % 1024 == 0 ? absl::StrCat(batch, " x ", tokens / 1024, "k")
                            : absl::StrCat(batch, " x ", tokens);
}

std::vector<std::uint16_t> RandomHalves(std::size_t count) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = codec::HalfFromFloat(normal(random) * (i % 16 == 3 ? 3.0f : 1.0f));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<AttentionCaches>> AttentionCaches::Create(
    const codec::BlockSpec& spec, const CacheShape& shape, std::size_t l2_bytes, Stream& stream) {
  std::unique_ptr<AttentionCaches> caches(new AttentionCaches(spec, shape));
  KVF_RETURN_IF_ERROR(caches->Fill(l2_bytes, stream));
  return caches;
}

AttentionCaches::AttentionCaches(const codec::BlockSpec& spec, const CacheShape& shape)
    : spec_(spec),
      shape_(shape),
      plan_(codec::PlanBlocks(shape.tokens, kWindow)),
      page_bytes_(codec::PageBytes(spec, kKvHeads)) {}

absl::Status AttentionCaches::Launch(int copy, bool early, Stream& stream) {
  kernels::AttentionLayer layer;
  layer.sequences = sequences_.as<kernels::AttentionSequence>();
  layer.pages = table(copy);
  layer.pages_settled = early;
  layer.window_offset = static_cast<std::int64_t>(copy) * shape_.batch * WindowValues();
  layer.q = q_.as<std::uint16_t>();
  layer.out = out_.as<std::uint16_t>();
  return attention_->Launch(layer, stream);
}

absl::StatusOr<DeviceBuffer> AttentionCaches::QuantizeSome(Stream& stream) {
  constexpr int kPages = 64, kTokens = kPages * codec::kBlockTokens;
  KVF_ASSIGN_OR_RETURN(
      const DeviceBuffer kv,
      Upload(RandomHalves(std::size_t{2} * kKvHeads * kTokens * kHeadDim), stream));
  KVF_ASSIGN_OR_RETURN(DeviceBuffer pages, DeviceBuffer::Allocate(page_bytes_ * kPages));
  std::vector<kernels::QuantizeItem> items;
  for (int i = 0; i < kPages; ++i) {
    items.push_back({.k = kv.as<std::uint16_t>(),
                     .v = kv.as<std::uint16_t>() + std::int64_t{kKvHeads} * kTokens * kHeadDim,
                     .page = pages.data() + page_bytes_ * i,
                     .head_stride = std::int64_t{kTokens} * kHeadDim,
                     .token_stride = kHeadDim,
                     .token = kWindow.sinks + i * codec::kBlockTokens,
                     .first_row = i * codec::kBlockTokens,
                     .k_bits = static_cast<std::uint8_t>(spec_.k_bits),
                     .v_bits = static_cast<std::uint8_t>(spec_.v_bits)});
  }
  KVF_ASSIGN_OR_RETURN(const DeviceBuffer list, Upload(items, stream));
  KVF_ASSIGN_OR_RETURN(const DeviceBuffer fault,
                       Upload(std::vector<std::uint64_t>{kernels::kNoFault}, stream));
  KVF_ASSIGN_OR_RETURN(kernels::QuantizeParams params,
                       kernels::QuantizeParamsOf(spec_, codec::Raw16::kFp16, 0, kKvHeads));
  params.items = list.as<kernels::QuantizeItem>();
  params.max_items = kPages;
  params.first_fault = fault.as<std::uint64_t>();
  KVF_RETURN_IF_ERROR(kernels::LaunchQuantizeBlock(params, stream));
  KVF_RETURN_IF_ERROR(stream.Synchronize());
  return pages;
}

absl::Status AttentionCaches::Fill(std::size_t l2_bytes, Stream& stream) {
  copies_ = 1 + static_cast<int>(3.2 * static_cast<double>(l2_bytes) / block_bytes());
  const std::size_t pool_bytes = page_bytes_ * pages() * copies_;
  KVF_ASSIGN_OR_RETURN(pool_, DeviceBuffer::Allocate(pool_bytes));
  KVF_ASSIGN_OR_RETURN(const DeviceBuffer some, QuantizeSome(stream));
  for (std::size_t at = 0; at < pool_bytes; at += some.bytes()) {
    KVF_RETURN_IF_ERROR(kernels::CopyAsync(pool_.data() + at, some.data(),
                                           std::min(some.bytes(), pool_bytes - at), stream));
  }
  std::vector<std::uint32_t> place(static_cast<std::size_t>(pages()) * copies_);
  std::iota(place.begin(), place.end(), 0u);
  std::shuffle(place.begin(), place.end(), std::mt19937(5));
  std::vector<const std::byte*> table;
  for (const std::uint32_t at : place) table.push_back(pool_.data() + page_bytes_ * at);
  KVF_ASSIGN_OR_RETURN(table_, Upload(table, stream));

  const std::size_t sinks = std::size_t{2} * kKvHeads * kWindow.sinks * kHeadDim;
  KVF_ASSIGN_OR_RETURN(sinks_, Upload(RandomHalves(sinks * shape_.batch), stream));
  const std::vector<std::uint16_t> window = RandomHalves(WindowValues() * shape_.batch);
  KVF_ASSIGN_OR_RETURN(windows_, DeviceBuffer::Allocate(window.size() * 2 * copies_));
  for (int i = 0; i < copies_; ++i) {
    KVF_RETURN_IF_ERROR(kernels::CopyAsync(windows_.data() + window.size() * 2 * i, window.data(),
                                           window.size() * 2, stream));
  }
  std::vector<kernels::AttentionSequence> sequences;
  std::vector<kernels::AttentionLength> lengths;
  for (int i = 0; i < shape_.batch; ++i) {
    sequences.push_back({.sinks = sinks_.as<std::uint16_t>() + sinks * i,
                         .window = windows_.as<std::uint16_t>() + WindowValues() * i,
                         .sink_tokens = plan_.sinks,
                         .window_begin = i % codec::WindowCapacity(kWindow),
                         .window_tokens = plan_.window_tokens(),
                         .first_page = plan_.blocks * i});
    lengths.push_back({.blocks = plan_.blocks,
                       .raw_tokens = plan_.sinks + plan_.window_tokens(),
                       .page_begin = plan_.blocks * i});
  }
  KVF_ASSIGN_OR_RETURN(sequences_, Upload(sequences, stream));
  const std::size_t rows = static_cast<std::size_t>(shape_.batch) * kQHeads * kHeadDim;
  KVF_ASSIGN_OR_RETURN(q_, Upload(RandomHalves(rows), stream));
  KVF_ASSIGN_OR_RETURN(out_, DeviceBuffer::Allocate(rows * 2));
  KVF_ASSIGN_OR_RETURN(attention_, kernels::DecodeAttention::Create(
                                       {.spec = spec_,
                                        .q_heads = kQHeads,
                                        .kv_heads = kKvHeads,
                                        .scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim)),
                                        .sink_capacity = kWindow.sinks,
                                        .window_capacity = codec::WindowCapacity(kWindow),
                                        .max_sequences = shape_.batch}));
  KVF_RETURN_IF_ERROR(attention_->Plan(lengths, stream));
  return stream.Synchronize();
}

}  // namespace kvferry::bench
