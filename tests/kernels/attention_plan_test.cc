#include "kernels/attention_plan.h"

#include <cstring>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace kvferry::kernels {
namespace {

constexpr int kSlots = 528;

int Tiles(const AttentionLength& length) {
  return (length.raw_tokens + kTileTokens - 1) / kTileTokens;
}

// Every block and tile of every sequence, KV head and row is in exactly one piece, in order, the
// pieces of one of them know of each other, and the last of the plan merges them: a piece that
// waited for a later one could wait for ever.
void ExpectCovers(const AttentionPlan& plan, const std::vector<AttentionLength>& lengths,
                  const AttentionShape& shape) {
  std::map<int, std::map<int, AttentionPiece>> by_first_partial;  // then by partial
  for (const AttentionPiece& piece : plan.pieces) {
    EXPECT_TRUE(shape.clustered || piece.blocks + piece.tiles > 0) << "an empty piece";
    auto& pieces = by_first_partial[piece.first_partial];
    EXPECT_TRUE(pieces.emplace(piece.partial, piece).second);
    const bool last = static_cast<int>(pieces.size()) == piece.partials;
    EXPECT_EQ(piece.merges, last && piece.partials > 1 && !shape.clustered ? 1 : 0);
  }
  std::map<std::pair<int, int>, int> rows;  // by sequence and head
  for (const auto& [first_partial, pieces] : by_first_partial) {
    const AttentionPiece& first = pieces.begin()->second;
    const AttentionLength& length = lengths[first.sequence];
    int block = length.page_begin, tile = 0, partial = first_partial;
    for (const auto& [index, piece] : pieces) {
      EXPECT_EQ(index, partial++);
      EXPECT_EQ(piece.sequence, first.sequence);
      EXPECT_EQ(piece.kv_head, first.kv_head);
      EXPECT_EQ(piece.row_begin, first.row_begin);
      EXPECT_EQ(piece.rows, first.rows);
      EXPECT_EQ(piece.partials, static_cast<int>(pieces.size()));
      EXPECT_EQ(piece.page_begin, block);
      EXPECT_EQ(piece.tile_begin, tile);
      block += piece.blocks;
      tile += piece.tiles;
    }
    EXPECT_EQ(block, length.page_begin + length.blocks);
    EXPECT_EQ(tile, Tiles(length));
    EXPECT_LE(first.rows, kColumns);
    int& covered = rows[{first.sequence, first.kv_head}];
    covered += first.rows;
  }
  EXPECT_EQ(rows.size(), lengths.size() * shape.kv_heads);
  for (const auto& [where, covered] : rows) EXPECT_EQ(covered, shape.query_rows);
}

TEST(AttentionPlanTest, CoversEverythingOnceAndStaysWithinItsBounds) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    AttentionShape shape;
    shape.kv_heads = 1 + static_cast<int>(random() % 8);
    shape.query_rows = 1 + static_cast<int>(random() % 20);
    shape.slots = round % 3 == 0 ? 1 + static_cast<int>(random() % 20) : kSlots;
    shape.warps = 1 + static_cast<int>(random() % 4);
    shape.tile_cost = 0.25f * static_cast<float>(1 + random() % 10);
    shape.has_tails = random() % 2 == 0;
    std::vector<AttentionLength> lengths(1 + random() % (round % 2 == 0 ? 4 : 90));
    int page = 0;
    for (AttentionLength& length : lengths) {
      length.blocks = static_cast<int>(random() % (random() % 5 == 0 ? 2048 : 30));
      length.raw_tokens = 1 + static_cast<int>(random() % 200);
      length.page_begin = page;
      page += length.blocks;
    }
    const AttentionPlan plan = PlanAttention(lengths, shape);
    ExpectCovers(plan, lengths, shape);
    const auto most = static_cast<int>(lengths.size() + random() % 3);
    EXPECT_LE(static_cast<int>(plan.pieces.size()), MaxPieces(most, shape));
  }
}

TEST(AttentionPlanTest, OneTokenIsOnePieceOfEachHead) {
  const AttentionShape shape = {.kv_heads = 8, .query_rows = 4, .slots = kSlots, .warps = 4};
  const std::vector<AttentionLength> lengths = {{.blocks = 0, .raw_tokens = 1}};
  const AttentionPlan plan = PlanAttention(lengths, shape);
  EXPECT_EQ(plan.pieces.size(), 8u);
  ExpectCovers(plan, lengths, shape);
  EXPECT_TRUE(PlanAttention({}, shape).pieces.empty());
}

TEST(AttentionPlanTest, ALongSequenceFillsTheDevice) {
  const AttentionShape shape = {.kv_heads = 8, .query_rows = 4, .slots = kSlots, .warps = 4};
  const std::vector<AttentionLength> lengths = {{.blocks = 2047, .raw_tokens = 68}};
  const AttentionPlan plan = PlanAttention(lengths, shape);
  EXPECT_LE(plan.pieces.size(), static_cast<std::size_t>(kSlots));
  EXPECT_GE(plan.pieces.size(), static_cast<std::size_t>(kSlots) * 9 / 10);
  ExpectCovers(plan, lengths, shape);
}

TEST(AttentionPlanTest, TheLongestPieceOfARaggedBatchIsNotMuchLongerThanTheMean) {
  const AttentionShape shape = {.kv_heads = 8, .query_rows = 4, .slots = kSlots, .warps = 4};
  std::vector<AttentionLength> lengths(256, {.blocks = 14, .raw_tokens = 68});
  lengths[100].blocks = 2047;
  const AttentionPlan plan = PlanAttention(lengths, shape);
  ExpectCovers(plan, lengths, shape);
  int longest = 0;
  double sum = 0;
  for (const AttentionPiece& piece : plan.pieces) {
    longest = std::max(longest, piece.blocks);
    sum += piece.blocks;
  }
  EXPECT_LE(longest, sum / kSlots) << "one piece would keep the device waiting";
}

TEST(AttentionPlanTest, LongPiecesLeaveTailsToWhoIsDoneEarly) {
  AttentionShape shape = {.kv_heads = 8, .query_rows = 4, .slots = kSlots, .warps = 4};
  const std::vector<AttentionLength> lengths(8, {.blocks = 768, .raw_tokens = 68});
  const AttentionPlan without = PlanAttention(lengths, shape);
  EXPECT_EQ(without.pieces.size(), 512u);
  EXPECT_FALSE(without.has_tails);
  shape.has_tails = true;
  const AttentionPlan plan = PlanAttention(lengths, shape);
  EXPECT_TRUE(plan.has_tails);
  ExpectCovers(plan, lengths, shape);
  ASSERT_EQ(plan.pieces.size(), 1024u);
  for (int i = 0; i < 512; ++i) EXPECT_NEAR(plan.pieces[i].blocks, 88, 2) << i;
  for (int i = 512; i < 1024; ++i) EXPECT_EQ(plan.pieces[i].blocks, 8) << i;
  EXPECT_FALSE(
      PlanAttention(std::vector<AttentionLength>(8, {.blocks = 512, .raw_tokens = 68}), shape)
          .has_tails);
}

TEST(AttentionPlanTest, InClustersEveryHeadIsAsManyPiecesOneAfterTheOther) {
  std::mt19937 random(2);
  for (int round = 0; round < 300; ++round) {
    AttentionShape shape = {.kv_heads = 1 + static_cast<int>(random() % 4),
                            .query_rows = 1 + static_cast<int>(random() % 64),
                            .warps = 1 + static_cast<int>(random() % 16),
                            .tile_cost = 0.1f,
                            .clustered = true};
    std::vector<AttentionLength> lengths(1 + random() % 3);
    int page = 0;
    for (AttentionLength& length : lengths) {
      length.blocks = static_cast<int>(random() % (round % 2 == 0 ? 12 : 300));
      length.raw_tokens = 1 + static_cast<int>(random() % 200);
      length.page_begin = page;
      page += length.blocks;
    }
    const int sequences = static_cast<int>(lengths.size());
    const int heads = sequences * shape.kv_heads * ((shape.query_rows + kColumns - 1) / kColumns);
    shape.slots = kClusterBlocks * (heads + static_cast<int>(random() % 3));
    const AttentionPlan plan = PlanAttention(lengths, shape);
    ExpectCovers(plan, lengths, shape);
    ASSERT_EQ(plan.pieces.size(), static_cast<std::size_t>(heads) * kClusterBlocks);
    EXPECT_EQ(MaxPieces(sequences, shape), heads * kClusterBlocks) << "part of a cluster";
    EXPECT_EQ(MaxPieces(sequences + 100, shape), shape.slots);
    for (int i = 0; i < static_cast<int>(plan.pieces.size()); ++i) {
      EXPECT_EQ(plan.pieces[i].partial, i);
      EXPECT_EQ(plan.pieces[i].first_partial, i / kClusterBlocks * kClusterBlocks);
    }
    const AttentionPlan again = PlanAttention(lengths, shape);
    ASSERT_EQ(again.pieces.size(), plan.pieces.size());
    EXPECT_EQ(std::memcmp(again.pieces.data(), plan.pieces.data(),
                          plan.pieces.size() * sizeof(AttentionPiece)),
              0);
  }
}

TEST(AttentionPlanTest, AClusterHasEmptyPiecesAtItsEndAndNoneOfMoreRoundsThanItNeeds) {
  const AttentionShape shape = {.kv_heads = 1,
                                .query_rows = 4,
                                .slots = kClusterBlocks,
                                .warps = 16,
                                .tile_cost = 0.1f,
                                .clustered = true};
  for (int blocks = 0; blocks <= kClusterBlocks * shape.warps; ++blocks) {
    for (const int raw_tokens : {1, 16, 17, 68, 131, 1000}) {
      SCOPED_TRACE(testing::Message() << blocks << " blocks, " << raw_tokens << " 16-bit tokens");
      const AttentionLength length = {.blocks = blocks, .raw_tokens = raw_tokens};
      const AttentionPlan plan = PlanAttention({&length, 1}, shape);
      ASSERT_EQ(plan.pieces.size(), static_cast<std::size_t>(kClusterBlocks));
      for (int i = 0; i < kClusterBlocks; ++i) {
        const AttentionPiece& piece = plan.pieces[i];
        EXPECT_EQ(piece.blocks + piece.tiles > 0, i < blocks + Tiles(length)) << i;
        EXPECT_LE(piece.blocks, shape.warps) << i;
      }
    }
  }
}

}  // namespace
}  // namespace kvferry::kernels
