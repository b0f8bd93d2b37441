#include "decode_node/device_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/append_tokens.h"
#include "kernels/page_table.h"

namespace kvferry::decode {
namespace {

using kernels::AppendTarget;
using kernels::AttentionSequence;

std::size_t TargetsOffset(int max_sequences) { return sizeof(AttentionSequence) * max_sequences; }
std::size_t RowsOffset(int max_sequences) {
  return TargetsOffset(max_sequences) + sizeof(AppendTarget) * max_sequences;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceAttention>> DeviceAttention::Create(
    int gpu, int max_sequences, int q_heads, const CacheStore& store, kernels::Stream& stream,
    const MakeAttention& make_attention) {
  std::unique_ptr<DeviceAttention> attention(
      new DeviceAttention(gpu, max_sequences, q_heads, store, stream));
  KVF_RETURN_IF_ERROR(attention->MakeAttentions(make_attention));
  KVF_RETURN_IF_ERROR(attention->AllocateInputs());
  return attention;
}

absl::Status DeviceAttention::MakeAttentions(const MakeAttention& make_attention) {
  const codec::WindowSpec& window = store_.codec().window;
  std::vector<codec::BlockSpec> kinds;
  for (const codec::BlockSpec& spec : store_.specs()) {
    codec::BlockSpec kind = spec;
    kind.layer = 0;  // a kind has the codebooks of all layers
    const auto known = std::find(kinds.begin(), kinds.end(), kind);
    attention_of_layer_.push_back(static_cast<std::size_t>(known - kinds.begin()));
    if (known != kinds.end()) continue;
    kinds.push_back(kind);
    auto attention = make_attention({.spec = spec,
                                     .q_heads = q_heads_,
                                     .kv_heads = store_.geometry().kv_heads,
                                     .type = store_.codec().raw_type,
                                     .scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim)),
                                     .sink_capacity = window.sinks,
                                     .window_capacity = codec::WindowCapacity(window),
                                     .max_sequences = max_sequences_});
    if (!attention.ok()) {
      return absl::Status(attention.status().code(),
                          absl::StrCat("codec \"", store_.codec().name, "\", layer ",
                                       attention_of_layer_.size() - 1, ", on cuda:", gpu_, ": ",
                                       attention.status().message()));
    }
    attentions_.push_back(*std::move(attention));
  }
  return absl::OkStatus();
}

absl::Status DeviceAttention::AllocateInputs() {
  const int layers = store_.geometry().layers;
  const std::size_t bytes = RowsOffset(max_sequences_) + sizeof(std::uint32_t) * store_.rows();
  KVF_ASSIGN_OR_RETURN(inputs_host_, kernels::PinnedBuffer::Allocate(bytes));
  KVF_ASSIGN_OR_RETURN(inputs_, kernels::DeviceBuffer::Allocate(bytes));
  KVF_ASSIGN_OR_RETURN(
      page_table_, kernels::DeviceBuffer::Allocate(sizeof(std::byte*) * layers * store_.rows()));
  std::vector<kernels::PageLayer> page_layers;
  page_layers.reserve(layers);
  for (int layer = 0; layer < layers; ++layer) {
    page_layers.push_back({.begin = store_.layer_pages(layer),
                           .page_bytes = static_cast<std::int64_t>(store_.page_bytes()[layer])});
  }
  const std::size_t layers_bytes = sizeof(kernels::PageLayer) * page_layers.size();
  KVF_ASSIGN_OR_RETURN(page_layers_, kernels::DeviceBuffer::Allocate(layers_bytes));
  KVF_RETURN_IF_ERROR(
      kernels::CopyAsync(page_layers_.data(), page_layers.data(), layers_bytes, stream_));
  return stream_.Synchronize();
}

absl::Status DeviceAttention::Begin(std::span<StoredSequence* const> sequences) {
  const int rows = DescribeBatch(sequences);
  const std::size_t rows_offset = RowsOffset(max_sequences_);
  KVF_RETURN_IF_ERROR(kernels::CopyAsync(inputs_.data(), inputs_host_.data(),
                                         rows_offset + sizeof(std::uint32_t) * rows, stream_));
  KVF_RETURN_IF_ERROR(kernels::LaunchPageTable(
      {.layers = page_layers_.as<const kernels::PageLayer>(),
       .layer_count = store_.geometry().layers,
       .rows = reinterpret_cast<const std::uint32_t*>(inputs_.data() + rows_offset),
       .row_count = rows,
       .table = page_table_.as<const std::byte*>(),
       .table_stride = store_.rows()},
      stream_));
  for (const auto& attention : attentions_) {
    KVF_RETURN_IF_ERROR(attention->Plan(lengths_, stream_));
  }
  return absl::OkStatus();
}

std::vector<int> DeviceAttention::launch_kinds() const {
  std::vector<int> kinds;
  kinds.reserve(attentions_.size());
  for (const auto& attention : attentions_) kinds.push_back(attention->launch_kind());
  return kinds;
}

int DeviceAttention::DescribeBatch(std::span<StoredSequence* const> sequences) {
  auto* sequence = inputs_host_.as<AttentionSequence>();
  auto* target =
      reinterpret_cast<AppendTarget*>(inputs_host_.data() + TargetsOffset(max_sequences_));
  auto* const rows =
      reinterpret_cast<std::uint32_t*>(inputs_host_.data() + RowsOffset(max_sequences_));
  int row_count = 0;
  lengths_.clear();
  sequences_ = static_cast<int>(sequences.size());
  for (StoredSequence* cache : sequences) {
    cache->Append();
    const StoredSequence::DeviceRows at = cache->Rows();
    *sequence++ = {.sinks = at.sinks,
                   .window = at.window,
                   .sink_tokens = at.sink_tokens,
                   .window_begin = at.window_begin,
                   .window_tokens = at.window_tokens,
                   .first_page = row_count};
    *target++ = {.k = at.new_k, .v = at.new_v, .head_stride = at.head_elements};
    const int blocks = static_cast<int>(at.pages.size());
    lengths_.push_back({.blocks = blocks,
                        .raw_tokens = at.sink_tokens + at.window_tokens,
                        .page_begin = row_count});
    // Every row of the store is in one sequence at most: they all fit.
    for (const cache::RowIdx row : at.pages) rows[row_count++] = static_cast<std::uint32_t>(row);
  }
  return row_count;
}

absl::Status DeviceAttention::AppendAndAttend(int layer, const std::uint16_t* q,
                                              const std::uint16_t* k, const std::uint16_t* v,
                                              std::uint16_t* out) {
  const std::int64_t offset = store_.layer_elements() * layer;
  KVF_RETURN_IF_ERROR(kernels::LaunchAppendTokens(
      {.targets =
           reinterpret_cast<const AppendTarget*>(inputs_.data() + TargetsOffset(max_sequences_)),
       .sequences = sequences_,
       .kv_heads = store_.geometry().kv_heads,
       .head_dim = store_.geometry().head_dim,
       .layer_offset = offset,
       .k = k,
       .v = v},
      stream_));
  return attentions_[attention_of_layer_[layer]]->Launch(
      {.sequences = inputs_.as<const AttentionSequence>(),
       .pages = page_table_.as<const std::byte*>() + std::size_t{store_.rows()} * layer,
       .layer = layer,
       .sink_offset = offset,
       .window_offset = offset,
       .q = q,
       .out = out,
       .pages_settled = true},  // appending writes windows alone
      stream_);
}

}  // namespace kvferry::decode
