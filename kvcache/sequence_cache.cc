#include "kvcache/sequence_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvferry::cache {

using codec::kBlockTokens;

std::uint32_t RowsNeeded(int prompt_tokens, int new_tokens, const codec::WindowSpec& window) {
  return static_cast<std::uint32_t>(
      codec::PlanBlocks(prompt_tokens + std::max(0, new_tokens - 1), window).blocks);
}

absl::StatusOr<SequenceCache> SequenceCache::Adopt(int prompt_tokens,
                                                   const codec::WindowSpec& window,
                                                   std::vector<RowIdx> rows) {
  const codec::BlockPlan plan = codec::PlanBlocks(prompt_tokens, window);
  if (static_cast<std::size_t>(plan.blocks) > rows.size()) {
    return absl::InternalError(absl::StrCat("a sequence of ", prompt_tokens, " tokens has ",
                                            plan.blocks, " blocks but only ", rows.size(),
                                            " rows"));
  }
  SequenceCache sequence;
  sequence.window_ = window;
  sequence.tokens_ = prompt_tokens;
  sequence.sink_tokens_ = plan.sinks;
  sequence.blocks_ = plan.blocks;
  sequence.window_begin_ = plan.window_begin;
  sequence.rows_ = std::move(rows);
  return sequence;
}

SequenceCache::Place SequenceCache::Append() {
  ++tokens_;
  if (tokens_ <= window_.sinks) {
    sink_tokens_ = tokens_;
    window_begin_ = tokens_;
    return {.sink = true, .index = tokens_ - 1};
  }
  return {.sink = false, .index = window_tokens() - 1};
}

bool SequenceCache::MustFlush() const { return window_tokens() >= codec::WindowCapacity(window_); }

absl::StatusOr<RowIdx> SequenceCache::Flush() {
  if (!MustFlush())
    return absl::InternalError(
        absl::StrCat("flush of a window that holds only ", window_tokens(), " tokens"));
  if (static_cast<std::size_t>(blocks_) >= rows_.size()) {
    return absl::ResourceExhaustedError(absl::StrCat("no row is left for block ", blocks_,
                                                     " of a sequence of ", tokens_, " tokens"));
  }
  const RowIdx row = rows_[blocks_];
  ++blocks_;
  window_begin_ += kBlockTokens;
  return row;
}

}  // namespace kvferry::cache
