#include "kvcache/sequence_cache.h"

#include <vector>

#include "gtest/gtest.h"

namespace kvferry::cache {
namespace {

using codec::PlanBlocks;
using codec::WindowSpec;

std::vector<RowIdx> Rows(std::uint32_t count) {
  std::vector<RowIdx> rows;
  for (std::uint32_t i = 0; i < count; ++i) rows.push_back(RowIdx{i + 100});
  return rows;
}

TEST(RowsNeeded, CountsTheBlocksOfTheFinalLengthWithoutTheLastToken) {
  const WindowSpec window{.sinks = 4, .recent = 64};
  EXPECT_EQ(RowsNeeded(10, 1, window), 0u);
  EXPECT_EQ(RowsNeeded(131, 1, window), 0u);
  EXPECT_EQ(RowsNeeded(132, 1, window), 1u);
  EXPECT_EQ(RowsNeeded(131, 2, window), 1u);
  EXPECT_EQ(RowsNeeded(100, 1000, window),
            static_cast<std::uint32_t>(PlanBlocks(1099, window).blocks));
  EXPECT_EQ(RowsNeeded(132, 0, window), 1u);
}

// Token by token from every start: what is stored where is always what the plan of that length
// says.
TEST(SequenceCache, FollowsThePlanWhileItGrows) {
  for (const WindowSpec window : {WindowSpec{4, 64}, WindowSpec{0, 128}, WindowSpec{7, 0}}) {
    for (const int start : {1, 3, 4, 5, 63, 64, 68, 131, 132, 133, 300}) {
      const int end = start + 300;
      auto sequence =
          SequenceCache::Adopt(start, window, Rows(RowsNeeded(start, end - start + 1, window)));
      ASSERT_TRUE(sequence.ok()) << sequence.status();
      for (int tokens = start; tokens <= end; ++tokens) {
        const codec::BlockPlan plan = PlanBlocks(tokens, window);
        ASSERT_EQ(sequence->tokens(), tokens);
        ASSERT_EQ(sequence->sink_tokens(), plan.sinks);
        ASSERT_EQ(sequence->blocks(), plan.blocks);
        ASSERT_EQ(sequence->window_begin(), plan.window_begin);
        ASSERT_EQ(sequence->window_tokens(), plan.window_tokens());
        const SequenceCache::Place place = sequence->Append();
        ASSERT_EQ(place.sink, tokens < window.sinks);
        ASSERT_EQ(place.index, place.sink ? tokens : tokens - plan.window_begin);
        ASSERT_LE(sequence->window_tokens(), codec::WindowCapacity(window));
        if (sequence->MustFlush()) {
          const auto row = sequence->Flush();
          ASSERT_TRUE(row.ok()) << row.status();
          EXPECT_EQ(*row, sequence->published_rows().back());
        }
      }
    }
  }
}

TEST(SequenceCache, RefusesTooFewRowsAndAFlushTooEarly) {
  const WindowSpec window{.sinks = 4, .recent = 64};
  EXPECT_EQ(SequenceCache::Adopt(200, window, {}).status().code(), absl::StatusCode::kInternal);
  auto sequence = SequenceCache::Adopt(131, window, {});
  ASSERT_TRUE(sequence.ok());
  EXPECT_EQ(sequence->Flush().status().code(), absl::StatusCode::kInternal);
  sequence->Append();
  ASSERT_TRUE(sequence->MustFlush());
  EXPECT_EQ(sequence->Flush().status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace kvferry::cache
