#include "kvcache/block_pool.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvferry::cache {
namespace {

constexpr int kLayers = 3;
constexpr std::uint32_t kRows = 8;

BlockPool MakePool() { return BlockPool::Create(kLayers, kRows).value(); }

std::uint64_t Count(const BlockPool& pool, PageState state) {
  return pool.CountPages()[static_cast<std::size_t>(state)];
}

TEST(PageTransitions, ExactlyTheArrowsOfTheProtocolAreLegal) {
  using enum PageState;
  const std::vector<std::pair<PageState, PageState>> legal = {
      {kFree, kGranted},     {kGranted, kFilled}, {kGranted, kQuarantined}, {kGranted, kFree},
      {kFilled, kPublished}, {kFilled, kFree},    {kPublished, kFree},      {kQuarantined, kFree}};
  for (const PageState from : {kFree, kGranted, kFilled, kPublished, kQuarantined}) {
    for (const PageState to : {kFree, kGranted, kFilled, kPublished, kQuarantined}) {
      const bool expected =
          std::find(legal.begin(), legal.end(), std::make_pair(from, to)) != legal.end();
      EXPECT_EQ(IsLegalTransition(from, to), expected)
          << static_cast<int>(from) << " -> " << static_cast<int>(to);
    }
  }
}

TEST(BlockPool, RefusesAnEmptyPool) {
  EXPECT_EQ(BlockPool::Create(0, 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BlockPool::Create(4, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BlockPool, ARowGoesRoundItsLife) {
  BlockPool pool = MakePool();
  const RowIdx row = pool.Reserve(1).value().front();
  EXPECT_EQ(Count(pool, PageState::kGranted), kLayers);
  for (int layer = 0; layer < kLayers; ++layer) ASSERT_TRUE(pool.Fill(row, layer).ok());
  ASSERT_TRUE(pool.Publish(row).ok());
  EXPECT_EQ(Count(pool, PageState::kPublished), kLayers);
  ASSERT_TRUE(pool.Free(row).ok());
  EXPECT_EQ(pool.free_rows(), kRows);
  EXPECT_TRUE(pool.CheckConservation().ok());
}

TEST(BlockPool, ReservesAllOrNothing) {
  BlockPool pool = MakePool();
  EXPECT_EQ(pool.Reserve(kRows + 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.free_rows(), kRows);
  EXPECT_EQ(pool.Reserve(0).value().size(), 0u);
  EXPECT_EQ(pool.Reserve(kRows).value().size(), kRows);
  EXPECT_EQ(pool.Reserve(1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(BlockPool, IllegalMovesNameThePageAndChangeNothing) {
  BlockPool pool = MakePool();
  const RowIdx row = pool.Reserve(1).value().front();
  ASSERT_TRUE(pool.Fill(row, 0).ok());
  const auto before = pool.CountPages();
  EXPECT_THAT(std::string(pool.Fill(row, 0).message()), ::testing::HasSubstr("filled -> filled"));
  EXPECT_EQ(pool.Publish(row).code(), absl::StatusCode::kInternal)
      << "layers 1 and 2 are not filled";
  EXPECT_EQ(pool.ReleaseQuarantine(row).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(pool.Fill(RowIdx{kRows}, 0).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(pool.Fill(row, kLayers).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(pool.Quarantine(RowIdx{kRows}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(pool.Free(RowIdx{kRows}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(pool.CountPages(), before);
  EXPECT_TRUE(pool.CheckConservation().ok());
}

TEST(BlockPool, AFreeRowCannotBeFreedPublishedOrQuarantined) {
  BlockPool pool = MakePool();
  EXPECT_FALSE(pool.Free(RowIdx{0}).ok());
  EXPECT_FALSE(pool.Publish(RowIdx{0}).ok());
  EXPECT_FALSE(pool.Quarantine(RowIdx{0}).ok());
  EXPECT_FALSE(pool.ReleaseQuarantine(RowIdx{0}).ok());
  EXPECT_TRUE(pool.CheckConservation().ok());
}

TEST(BlockPool, AnAbortedRowIsNotReusedBeforeItsQuarantineEnds) {
  BlockPool pool = MakePool();
  const RowIdx row = pool.Reserve(kRows).value().front();
  ASSERT_TRUE(pool.Fill(row, 1).ok());
  ASSERT_TRUE(pool.Quarantine(row).ok());
  EXPECT_EQ(pool.state(row, 0), PageState::kQuarantined);
  EXPECT_EQ(pool.state(row, 1), PageState::kFree);
  EXPECT_EQ(pool.free_rows(), 0u);
  EXPECT_FALSE(pool.Reserve(1).ok());
  EXPECT_TRUE(pool.CheckConservation().ok());
  ASSERT_TRUE(pool.ReleaseQuarantine(row).ok());
  EXPECT_EQ(pool.free_rows(), 1u);
  EXPECT_FALSE(pool.ReleaseQuarantine(row).ok());
  EXPECT_TRUE(pool.CheckConservation().ok());
}

TEST(BlockPool, FreeDoesNotEndAQuarantine) {
  BlockPool pool = MakePool();
  const RowIdx row = pool.Reserve(1).value().front();
  ASSERT_TRUE(pool.Quarantine(row).ok());
  EXPECT_EQ(Count(pool, PageState::kQuarantined), kLayers);
  EXPECT_THAT(std::string(pool.Free(row).message()), ::testing::HasSubstr("quarantine"));
  EXPECT_EQ(Count(pool, PageState::kQuarantined), kLayers);
  EXPECT_TRUE(pool.CheckConservation().ok());
}

TEST(BlockPool, ARowWhosePagesAreAllFilledNeedsNoQuarantine) {
  BlockPool pool = MakePool();
  const RowIdx row = pool.Reserve(1).value().front();
  for (int layer = 0; layer < kLayers; ++layer) ASSERT_TRUE(pool.Fill(row, layer).ok());
  ASSERT_TRUE(pool.Quarantine(row).ok());
  EXPECT_EQ(pool.free_rows(), kRows);
  EXPECT_TRUE(pool.CheckConservation().ok());
}

// Any order of calls, legal or not: every page stays in exactly one state and the books stay right.
TEST(BlockPool, ConservesPagesUnderRandomCalls) {
  BlockPool pool = BlockPool::Create(kLayers, 5).value();
  std::mt19937 random(7);
  for (int step = 0; step < 20000; ++step) {
    const RowIdx row{static_cast<std::uint32_t>(random() % 6)};
    switch (random() % 6) {
      case 0:
        pool.Reserve(random() % 3).status().IgnoreError();
        break;
      case 1:
        pool.Fill(row, static_cast<int>(random() % kLayers)).IgnoreError();
        break;
      case 2:
        pool.Publish(row).IgnoreError();
        break;
      case 3:
        pool.Free(row).IgnoreError();
        break;
      case 4:
        pool.Quarantine(row).IgnoreError();
        break;
      default:
        pool.ReleaseQuarantine(row).IgnoreError();
    }
    const absl::Status books = pool.CheckConservation();
    ASSERT_TRUE(books.ok()) << "step " << step << ": " << books;
  }
}

}  // namespace
}  // namespace kvferry::cache
