#include "kvcodec/plan.h"

#include "gmock/gmock.h"

namespace kvferry::codec {
namespace {

TEST(PlanTest, CoversEveryTokenOnce) {
  for (const WindowSpec window : {WindowSpec{4, 64}, WindowSpec{0, 0}, WindowSpec{4, 128},
                                  WindowSpec{1, 1}, WindowSpec{100, 7}}) {
    for (int tokens = 0; tokens < 700; ++tokens) {
      const BlockPlan plan = PlanBlocks(tokens, window);
      EXPECT_EQ(plan.tokens, tokens);
      EXPECT_EQ(plan.sinks, std::min(tokens, window.sinks));
      EXPECT_EQ(plan.sinks + 64 * plan.blocks + plan.window_tokens(), tokens);
      EXPECT_GE(plan.window_tokens(), 0);
      EXPECT_LT(plan.window_tokens(), WindowCapacity(window));
      if (plan.blocks > 0) {
        EXPECT_GE(plan.window_tokens(), window.recent);
      }
    }
  }
}

// Blocks made early are the blocks that a longer sequence has: chunked prefill and decode agree.
TEST(PlanTest, BlocksAreAnchoredAtTheSinks) {
  const WindowSpec window{4, 64};
  for (int tokens = 1; tokens < 600; ++tokens) {
    const BlockPlan before = PlanBlocks(tokens - 1, window), after = PlanBlocks(tokens, window);
    EXPECT_GE(after.blocks, before.blocks);
    EXPECT_LE(after.blocks, before.blocks + 1);
    if (after.blocks > 0) {
      EXPECT_EQ(after.block_begin(0), 4);
    }
  }
  EXPECT_EQ(PlanBlocks(4 + 64 + 63, window).blocks, 0);
  EXPECT_EQ(PlanBlocks(4 + 64 + 64, window).blocks, 1);
}

TEST(PlanTest, HandoffBytesMatchTheFormula) {
  const Codec codec = FindCodec("kivi-4-g64").value();
  const CacheGeometry geometry{.layers = 30, .kv_heads = 3, .head_dim = 64};
  // 2,000 tokens: 4 sinks, 30 blocks, 76 in the window.
  const BlockPlan plan = PlanBlocks(2000, codec.window);
  ASSERT_EQ(plan.blocks, 30);
  ASSERT_EQ(plan.window_tokens(), 76);
  const std::size_t block = 64 * 64 * 4 / 8 * 2 + 64 * 4 + 64 * 4;
  const std::size_t want = 30 * (3 * (30 * block) + 80 * 3 * 64 * 2 * 2);
  EXPECT_EQ(HandoffBytes(2000, codec, geometry).value(), want);
  EXPECT_EQ(Raw16HandoffBytes(2000, geometry), std::size_t{30} * 2000 * 3 * 64 * 2 * 2);
}

TEST(PlanTest, HandoffBytesFollowLayerOverrides) {
  const CacheGeometry geometry{.layers = 2, .kv_heads = 1, .head_dim = 128};
  const Codec plain = FindCodec("kivi-2-g64").value();
  const Codec mixed = FindCodec("kivi-2-g64:layer.0=4/4").value();
  const int tokens = 4 + 64 + 64;
  EXPECT_EQ(
      HandoffBytes(tokens, mixed, geometry).value() - HandoffBytes(tokens, plain, geometry).value(),
      8960u - 4864u);
}

TEST(PlanTest, HandoffBytesRefuseAnUnknownHead) {
  const CacheGeometry geometry{.layers = 1, .kv_heads = 1, .head_dim = 80};
  EXPECT_EQ(HandoffBytes(1000, FindCodec("kivi-2").value(), geometry).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvferry::codec
