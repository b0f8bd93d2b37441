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

absl::Status CheckRuns(std::span<const PageRun> runs, std::size_t out_bytes) {
  std::size_t bytes = 0;
  for (const PageRun& run : runs) {
    if (run.kv.tokens % kBlockTokens != 0 || run.kv.head_dim != run.spec.head_dim) {
      return absl::InvalidArgumentError(absl::StrCat(run.kv.tokens, " tokens of ", run.kv.head_dim,
                                                     " channels; pages have 64 tokens of ",
                                                     run.spec.head_dim, " channels each"));
    }
    bytes += run.kv.tokens / kBlockTokens * PageBytes(run.spec, run.kv.kv_heads);
  }
  if (bytes == out_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pages of ", bytes, " bytes into ", out_bytes, " bytes"));
}

absl::StatusOr<std::uint32_t> Quantizer::QuantizeRuns(std::span<const PageRun> runs,
                                                      std::span<std::byte> out) const {
  KVF_RETURN_IF_ERROR(CheckRuns(runs, out.size()));
  std::span<std::byte> left = out;
  for (const PageRun& run : runs) {
    const std::size_t page = PageBytes(run.spec, run.kv.kv_heads);
    for (int token = 0; token < run.kv.tokens; token += kBlockTokens) {
      BlockOrigin block = run.origin;
      block.token_begin += token;
      KVF_RETURN_IF_ERROR(
          Quantize(run.kv.Tokens(token, kBlockTokens), run.spec, block, left.first(page)));
      left = left.subspan(page);
    }
  }
  return Check(out);
}

absl::Status Quantizer::QuantizePages(const KvView& kv, const BlockSpec& spec,
                                      const BlockOrigin& origin, std::span<std::byte> pages) const {
  const PageRun run{.kv = kv, .spec = spec, .origin = origin};
  return QuantizeRuns({&run, 1}, pages).status();
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
