#include "kernels/append_tokens.h"

#include "gmock/gmock.h"
#include "tests/kernels/gpu_blocks.h"

namespace kvferry::kernels {
namespace {

class AppendTokensTest : public GpuBlocksTest {};

TEST_F(AppendTokensTest, WritesOneRowOfEachHeadAndNothingElse) {
  struct Shape {
    int kv_heads, head_dim, rows;
  };
  for (const Shape& shape :
       {Shape{1, 64, 3}, Shape{2, 96, 7}, Shape{8, 128, 128}, Shape{16, 256, 5}}) {
    constexpr int kSequences = 3, kLayers = 2;
    const std::size_t token = std::size_t{1} * shape.kv_heads * shape.head_dim;
    const std::size_t side = token * shape.rows, layer_elements = 2 * side;
    std::vector<std::uint16_t> k(kSequences * token), v(k.size());
    for (std::size_t i = 0; i < k.size(); ++i) {
      k[i] = static_cast<std::uint16_t>(i);
      v[i] = static_cast<std::uint16_t>(~i);
    }
    const DeviceBuffer from_k = Upload(k), from_v = Upload(v);
    const DeviceBuffer windows = Filled(kSequences * kLayers * layer_elements * 2);
    std::vector<std::uint16_t> want(kSequences * kLayers * layer_elements, 0xa5a5);
    std::vector<AppendTarget> targets;
    for (int i = 0; i < kSequences; ++i) {
      const std::size_t row = (2 * i + 1) % shape.rows;  // another one in every sequence
      const std::size_t at = i * kLayers * layer_elements + row * shape.head_dim;
      targets.push_back({.k = windows.as<std::uint16_t>() + at,
                         .v = windows.as<std::uint16_t>() + at + side,
                         .head_stride = std::int64_t{1} * shape.rows * shape.head_dim});
      for (int head = 0; head < shape.kv_heads; ++head) {
        const std::size_t to = at + layer_elements + head * shape.rows * shape.head_dim;
        std::copy_n(k.begin() + i * token + head * shape.head_dim, shape.head_dim,
                    want.begin() + to);
        std::copy_n(v.begin() + i * token + head * shape.head_dim, shape.head_dim,
                    want.begin() + to + side);
      }
    }
    const DeviceBuffer list = Upload(targets);
    const absl::Status status =
        LaunchAppendTokens({.targets = list.as<const AppendTarget>(),
                            .sequences = kSequences,
                            .kv_heads = shape.kv_heads,
                            .head_dim = shape.head_dim,
                            .layer_offset = static_cast<std::int64_t>(layer_elements),
                            .k = from_k.as<std::uint16_t>(),
                            .v = from_v.as<std::uint16_t>()},
                           stream());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Download<std::uint16_t>(windows, want.size()) == want)
        << shape.kv_heads << " heads of " << shape.head_dim;
  }
}

TEST_F(AppendTokensTest, WhatCannotBeIsRefused) {
  const DeviceBuffer some = Filled(4096);
  const AppendParams good = {.targets = some.as<const AppendTarget>(),
                             .sequences = 0,
                             .kv_heads = 1,
                             .head_dim = 64,
                             .k = some.as<std::uint16_t>(),
                             .v = some.as<std::uint16_t>()};
  EXPECT_TRUE(LaunchAppendTokens(good, stream()).ok());
  AppendParams bad = good;
  bad.head_dim = 65;
  EXPECT_TRUE(absl::IsInvalidArgument(LaunchAppendTokens(bad, stream())));
  bad = good;
  bad.k = nullptr;
  EXPECT_TRUE(absl::IsInvalidArgument(LaunchAppendTokens(bad, stream())));
}

}  // namespace
}  // namespace kvferry::kernels
