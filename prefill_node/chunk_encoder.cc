#include "prefill_node/chunk_encoder.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace kvferry::prefill {

using codec::KvView;

absl::Status EncodeChunk(const ChunkPlan& chunk, std::span<const codec::BlockSpec> layers,
                         std::span<const KvView> views, const codec::Quantizer& quantizer,
                         std::span<std::byte> out) {
  if (out.size() != chunk.bytes) {
    return absl::InternalError(
        absl::StrCat("chunk of ", chunk.bytes, " bytes encoded into ", out.size()));
  }
  for (int layer = chunk.layer_begin; layer < chunk.layer_end(); ++layer) {
    const KvView& view = views[layer];
    if (view.tokens < chunk.token_begin + chunk.token_count) {
      return absl::InternalError(absl::StrCat("layer ", layer, " has ", view.tokens,
                                              " tokens, its chunk needs ",
                                              chunk.token_begin + chunk.token_count));
    }
    const KvView part = view.Tokens(chunk.token_begin, chunk.token_count);
    if (chunk.kind == transport::ChunkKind::kBlocks) {
      const std::size_t bytes = codec::PageBytes(layers[layer], view.kv_heads) *
                                (chunk.token_count / codec::kBlockTokens);
      KVF_RETURN_IF_ERROR(quantizer.QuantizePages(
          part, layers[layer],
          {.layer = layer, .kv_head_begin = 0, .token_begin = chunk.token_begin},
          out.first(bytes)));
      out = out.subspan(bytes);
    } else {
      const std::size_t bytes = codec::Raw16Bytes(part.tokens, part.kv_heads, part.head_dim);
      KVF_RETURN_IF_ERROR(quantizer.CopyTokens(part, out.first(bytes)));
      out = out.subspan(bytes);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvferry::prefill
