#include "prefill_node/chunk_layout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace kvferry::prefill {
namespace {

using codec::kBlockTokens;
using transport::ChunkKind;

// A token range that becomes ready together in each layer.
struct TokenRange {
  ChunkKind kind;
  int begin = 0;
  int count = 0;
  int ready_tokens = 0;
};

std::size_t LayerBytes(const LayoutInput& input, const TokenRange& range, int layer) {
  const int heads = input.geometry.kv_heads;
  if (range.kind != ChunkKind::kBlocks) {
    return codec::Raw16Bytes(range.count, heads, input.geometry.head_dim);
  }
  return codec::PageBytes(input.layers[layer], heads) * (range.count / kBlockTokens);
}

ChunkPlan MakeChunk(const TokenRange& range, int layer_begin, int layer_count, std::size_t bytes) {
  return {.kind = range.kind,
          .layer_begin = layer_begin,
          .layer_count = layer_count,
          .token_begin = range.begin,
          .token_count = range.count,
          .bytes = bytes,
          .ready_tokens = range.ready_tokens};
}

// A layer whose blocks do not fit into one slot.
absl::Status SplitByBlocks(const LayoutInput& input, const TokenRange& range, int layer,
                           std::vector<ChunkPlan>& out) {
  const std::size_t page = codec::PageBytes(input.layers[layer], input.geometry.kv_heads);
  if (page > input.slot_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a slot of ", input.slot_bytes, " bytes cannot hold one page of layer ", layer, " (", page,
        " bytes): raise send_slot_bytes on prefill and landing_slot_bytes on decode"));
  }
  const int fit = static_cast<int>(input.slot_bytes / page);
  const int blocks = range.count / kBlockTokens;
  for (int first = 0; first < blocks; first += fit) {
    TokenRange part = range;
    const int count = std::min(fit, blocks - first);
    part.begin = range.begin + first * kBlockTokens;
    part.count = count * kBlockTokens;
    out.push_back(MakeChunk(part, layer, 1, page * count));
  }
  return absl::OkStatus();
}

// Gathers whole layers until the target is reached or the slot is full.
absl::Status SplitByLayers(const LayoutInput& input, const TokenRange& range,
                           std::vector<ChunkPlan>& out) {
  int begin = 0;
  std::size_t bytes = 0;
  const auto flush = [&](int end) {
    if (end > begin) out.push_back(MakeChunk(range, begin, end - begin, bytes));
    begin = end;
    bytes = 0;
  };
  for (int layer = 0; layer < input.geometry.layers; ++layer) {
    const std::size_t more = LayerBytes(input, range, layer);
    if (more > input.slot_bytes - bytes) flush(layer);
    if (more > input.slot_bytes) {
      if (range.kind != ChunkKind::kBlocks) {
        return absl::InvalidArgumentError(absl::StrCat(
            "a slot of ", input.slot_bytes, " bytes cannot hold ", range.count,
            " tokens of one layer in 16 bit (", more,
            " bytes): raise send_slot_bytes on prefill and landing_slot_bytes on decode"));
      }
      KVF_RETURN_IF_ERROR(SplitByBlocks(input, range, layer, out));
      begin = layer + 1;
      continue;
    }
    bytes += more;
    if (bytes >= input.target_bytes) flush(layer + 1);
  }
  flush(input.geometry.layers);
  return absl::OkStatus();
}

// What becomes complete when the model goes from `from` to `to` tokens.
std::vector<TokenRange> ReadyRanges(const codec::BlockPlan& plan, int from, int to) {
  std::vector<TokenRange> ranges;
  if (plan.sinks > from && plan.sinks <= to)
    ranges.push_back({ChunkKind::kSinks, 0, plan.sinks, to});
  const auto complete = [&](int tokens) {
    return std::clamp((tokens - plan.sinks) / kBlockTokens, 0, plan.blocks);
  };
  const int first = complete(from), last = complete(to);
  if (last > first) {
    ranges.push_back(
        {ChunkKind::kBlocks, plan.block_begin(first), (last - first) * kBlockTokens, to});
  }
  if (to == plan.tokens && plan.window_tokens() > 0) {
    ranges.push_back({ChunkKind::kWindow, plan.window_begin, plan.window_tokens(), to});
  }
  return ranges;
}

absl::Status CheckInput(const LayoutInput& input) {
  if (input.plan.tokens < 1 || input.step_tokens < 1 || input.geometry.layers < 1 ||
      input.layers.size() != static_cast<std::size_t>(input.geometry.layers)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chunk layout of ", input.plan.tokens, " tokens, ", input.step_tokens, " per step, ",
        input.geometry.layers, " layers with ", input.layers.size(), " block specs"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ChunkPlan>> LayoutChunks(const LayoutInput& input) {
  KVF_RETURN_IF_ERROR(CheckInput(input));
  std::vector<ChunkPlan> chunks;
  for (int from = 0; from < input.plan.tokens; from += input.step_tokens) {
    const int to = std::min(input.plan.tokens, from + input.step_tokens);
    const auto step_begin = static_cast<std::ptrdiff_t>(chunks.size());
    for (const TokenRange& range : ReadyRanges(input.plan, from, to)) {
      KVF_RETURN_IF_ERROR(SplitByLayers(input, range, chunks));
    }
    std::stable_sort(
        chunks.begin() + step_begin, chunks.end(),
        [](const ChunkPlan& a, const ChunkPlan& b) { return a.layer_end() < b.layer_end(); });
  }
  return chunks;
}

}  // namespace kvferry::prefill
