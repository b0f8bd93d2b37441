#include "kernels/page_table.h"

#include "gmock/gmock.h"
#include "tests/kernels/gpu_blocks.h"

namespace kvferry::kernels {
namespace {

class PageTableTest : public GpuBlocksTest {};

TEST_F(PageTableTest, EveryLayerHasItsOwnPagesOfTheSameRows) {
  const std::byte* const base = reinterpret_cast<const std::byte*>(std::uintptr_t{1} << 40);
  const std::vector<PageLayer> layers = {
      {.begin = base, .page_bytes = 4864},
      {.begin = base + (std::int64_t{1} << 36), .page_bytes = 128}};
  for (const int count : {0, 1, 255, 256, 257, 1000}) {
    constexpr int kStride = 1000;
    std::vector<std::uint32_t> rows(kStride);
    for (int i = 0; i < kStride; ++i) rows[i] = (i * 7919u) % (1u << 30);
    const DeviceBuffer on_layers = Upload(layers), on_rows = Upload(rows);
    const DeviceBuffer table = Filled(layers.size() * kStride * sizeof(std::byte*));
    const absl::Status status = LaunchPageTable({.layers = on_layers.as<const PageLayer>(),
                                                 .layer_count = static_cast<int>(layers.size()),
                                                 .rows = on_rows.as<const std::uint32_t>(),
                                                 .row_count = count,
                                                 .table = table.as<const std::byte*>(),
                                                 .table_stride = kStride},
                                                stream());
    ASSERT_TRUE(status.ok()) << status;
    const auto got = Download<std::uint64_t>(table, layers.size() * kStride);
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      for (int i = 0; i < kStride; ++i) {
        const std::uint64_t want = i < count
                                       ? reinterpret_cast<std::uint64_t>(layers[layer].begin) +
                                             std::uint64_t{rows[i]} * layers[layer].page_bytes
                                       : 0xa5a5a5a5a5a5a5a5u;
        ASSERT_EQ(got[layer * kStride + i], want) << "layer " << layer << ", entry " << i;
      }
    }
  }
}

TEST_F(PageTableTest, WhatCannotBeIsRefused) {
  EXPECT_TRUE(
      absl::IsInvalidArgument(LaunchPageTable({.row_count = 2, .table_stride = 1}, stream())));
  EXPECT_TRUE(
      absl::IsInvalidArgument(LaunchPageTable({.row_count = 1, .table_stride = 1}, stream())));
}

}  // namespace
}  // namespace kvferry::kernels
