#include "kvcodec/backend.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/status_macros.h"

namespace kvferry::codec {
namespace {

// One side of a view to [kv_heads, tokens, head_dim]. Returns the end of what it wrote.
std::byte* CopySide(const std::uint16_t* values, const KvView& kv, std::byte* out) {
  const std::size_t row = sizeof(std::uint16_t) * kv.head_dim;
  for (int head = 0; head < kv.kv_heads; ++head) {
    for (int token = 0; token < kv.tokens; ++token, out += row) {
      std::memcpy(out, values + head * kv.head_stride + token * kv.token_stride, row);
    }
  }
  return out;
}

}  // namespace

absl::Status Quantizer::QuantizePages(const KvView& kv, const BlockSpec& spec,
                                      const BlockOrigin& origin, std::span<std::byte> pages) const {
  const std::size_t page = PageBytes(spec, kv.kv_heads);
  if (kv.tokens % kBlockTokens != 0 || pages.size() != kv.tokens / kBlockTokens * page) {
    return absl::InvalidArgumentError(absl::StrCat(kv.tokens, " tokens into ", pages.size(),
                                                   " bytes, pages of 64 tokens have ", page,
                                                   " bytes each"));
  }
  for (int token = 0; token < kv.tokens; token += kBlockTokens) {
    BlockOrigin block = origin;
    block.token_begin += token;
    KVF_RETURN_IF_ERROR(Quantize(kv.Tokens(token, kBlockTokens), spec, block, pages.first(page)));
    pages = pages.subspan(page);
  }
  return absl::OkStatus();
}

absl::Status Quantizer::CopyTokens(const KvView& kv, std::span<std::byte> out) const {
  if (out.size() != Raw16Bytes(kv.tokens, kv.kv_heads, kv.head_dim)) {
    return absl::InvalidArgumentError(
        absl::StrCat(kv.tokens, " tokens into ", out.size(), " bytes"));
  }
  CopySide(kv.v, kv, CopySide(kv.k, kv, out.data()));
  return absl::OkStatus();
}

absl::StatusOr<std::uint32_t> Quantizer::Check(std::span<const std::byte> bytes) const {
  return Crc32c(bytes);
}

}  // namespace kvferry::codec
