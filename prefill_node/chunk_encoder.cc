#include "prefill_node/chunk_encoder.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace kvferry::prefill {

using codec::KvView;

absl::StatusOr<std::uint32_t> EncodeChunk(const ChunkPlan& chunk,
                                          std::span<const codec::BlockSpec> layers,
                                          std::span<const KvView> views,
                                          const codec::Quantizer& quantizer,
                                          std::span<std::byte> out) {
  if (out.size() != chunk.bytes) {
    return absl::InternalError(
        absl::StrCat("chunk of ", chunk.bytes, " bytes encoded into ", out.size()));
  }
  std::vector<codec::PageRun> runs;
  std::span<std::byte> left = out;
  for (int layer = chunk.layer_begin; layer < chunk.layer_end(); ++layer) {
    const KvView& view = views[layer];
    if (view.tokens < chunk.token_begin + chunk.token_count) {
      return absl::InternalError(absl::StrCat("layer ", layer, " has ", view.tokens,
                                              " tokens, its chunk needs ",
                                              chunk.token_begin + chunk.token_count));
    }
    const KvView part = view.Tokens(chunk.token_begin, chunk.token_count);
    if (chunk.kind == transport::ChunkKind::kBlocks) {
      runs.push_back({.kv = part,
                      .spec = layers[layer],
                      .origin = {.layer = layer, .token_begin = chunk.token_begin}});
    } else {
      const std::size_t bytes = codec::Raw16Bytes(part.tokens, part.kv_heads, part.head_dim);
      KVF_RETURN_IF_ERROR(quantizer.CopyTokens(part, left.first(bytes)));
      left = left.subspan(bytes);
    }
  }
  if (chunk.kind == transport::ChunkKind::kBlocks) return quantizer.QuantizeRuns(runs, out);
  return quantizer.Check(out);
}

}  // namespace kvferry::prefill
