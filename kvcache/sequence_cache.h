#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/block_pool.h"
#include "kvcodec/plan.h"

namespace kvferry::cache {

// Rows that a sequence needs in all: those of the prompt and those of its growth to prompt_tokens +
// new_tokens. The last generated token never enters the cache. The same call prices a reservation
// and sizes a grant.
std::uint32_t RowsNeeded(int prompt_tokens, int new_tokens, const codec::WindowSpec& window);

// What one sequence has in the cache: token counts, its page table (rows in token order), its
// window. Ids and offsets only. Invariant between steps: blocks() == PlanBlocks(tokens(),
// window).blocks. Thread: none; the owner serializes.
class SequenceCache {
 public:
  // A sequence whose first `prompt_tokens` tokens have been adopted into `rows` (granted rows
  // follow the published ones).
  static absl::StatusOr<SequenceCache> Adopt(int prompt_tokens, const codec::WindowSpec& window,
                                             std::vector<RowIdx> rows);

  int tokens() const { return tokens_; }
  int sink_tokens() const { return sink_tokens_; }
  int blocks() const { return blocks_; }
  int window_tokens() const { return tokens_ - window_begin_; }
  int window_begin() const {
    return window_begin_;
  }  // absolute position of the oldest window token
  std::span<const RowIdx> published_rows() const {
    return {rows_.data(), static_cast<std::size_t>(blocks_)};
  }
  std::span<const RowIdx> rows() const { return rows_; }

  // One more token. Returns its index in the window buffer, or in the sinks when the sequence is
  // shorter than S.
  struct Place {
    bool sink = false;
    int index = 0;
  };
  Place Append();

  // True when the window holds recent + 64 tokens.
  bool MustFlush() const;
  // The oldest 64 window tokens become the block of the returned row (granted; the caller fills and
  // publishes it), the others move to the front of the window buffer. kResourceExhausted: no row
  // was reserved for it (a broken promise of admission).
  absl::StatusOr<RowIdx> Flush();

 private:
  SequenceCache() = default;
  codec::WindowSpec window_;
  int tokens_ = 0, sink_tokens_ = 0, blocks_ = 0, window_begin_ = 0;
  std::vector<RowIdx> rows_;
};

}  // namespace kvferry::cache
