#include "prefill_node/chunk_encoder.h"

#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace kvferry::prefill {
namespace {

using codec::kBlockTokens;
using codec::KvView;

absl::Status EncodePages(const ChunkPlan& chunk, int layer, const codec::BlockSpec& spec,
                         const KvView& view, const codec::Backend& backend,
                         std::span<std::byte>& out) {
  const std::size_t page = codec::PageBytes(spec, view.kv_heads);
  const int end = chunk.token_begin + chunk.token_count;
  for (int token = chunk.token_begin; token < end; token += kBlockTokens) {
    KVF_RETURN_IF_ERROR(backend.Quantize(view.Tokens(token, kBlockTokens), spec,
                                         {.layer = layer, .kv_head_begin = 0, .token_begin = token},
                                         out.first(page)));
    out = out.subspan(page);
  }
  return absl::OkStatus();
}

void CopyRaw(const std::uint16_t* values, const KvView& view, std::span<std::byte>& out) {
  const std::size_t row = sizeof(std::uint16_t) * view.head_dim;
  for (int head = 0; head < view.kv_heads; ++head) {
    for (int token = 0; token < view.tokens; ++token) {
      std::memcpy(out.data(), values + head * view.head_stride + token * view.token_stride, row);
      out = out.subspan(row);
    }
  }
}

}  // namespace

absl::Status EncodeChunk(const ChunkPlan& chunk, std::span<const codec::BlockSpec> layers,
                         std::span<const KvView> views, const codec::Backend& backend,
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
    if (chunk.kind == transport::ChunkKind::kBlocks) {
      KVF_RETURN_IF_ERROR(EncodePages(chunk, layer, layers[layer], view, backend, out));
    } else {
      const KvView part = view.Tokens(chunk.token_begin, chunk.token_count);
      CopyRaw(part.k, part, out);
      CopyRaw(part.v, part, out);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvferry::prefill
