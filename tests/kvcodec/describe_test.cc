#include "kvcodec/describe.h"

#include <numeric>

#include "gmock/gmock.h"
#include "kvcodec/code_io.h"
#include "kvcodec/format.h"
#include "tests/kvcodec/kv_samples.h"

namespace kvferry::codec {
namespace {

using testing::HasSubstr;

std::vector<std::byte> MakeBlock(const BlockSpec& spec) {
  const Raw16 type = spec.kind == BlockKind::kRaw16 ? spec.raw_type : Raw16::kBf16;
  const KvSample kv = MakeKv(1, 64, spec.head_dim, type, 3);
  GuardedPage page(BlockBytes(spec));
  EXPECT_TRUE(MakeBackend(true)->Quantize(kv.view, spec, {}, page.span()).ok());
  return {page.span().begin(), page.span().end()};
}

TEST(DescribeTest, RegionsCoverTheBlock) {
  for (const BlockSpec& spec :
       {ScalarSpec(96, 3, 1, 32, 32), ScalarSpec(128, 4, 2, 64, 128), ScalarSpec(64, 8, 8, 64, 64),
        BlockSpec{.kind = BlockKind::kInt8, .head_dim = 96},
        BlockSpec{.kind = BlockKind::kFp8, .head_dim = 64}, LutSpec(LutTable::kLm3, 96),
        LutSpec(LutTable::kAnf4, 96), LutSpec(LutTable::kAnf4, 128),
        BlockSpec{.kind = BlockKind::kRaw16, .raw_type = Raw16::kBf16, .head_dim = 64}}) {
    const absl::StatusOr<BlockDescription> block = DescribeBlock(MakeBlock(spec), spec);
    ASSERT_TRUE(block.ok()) << block.status();
    std::size_t next = 0;
    for (const RegionDescription& region : block->regions) {
      EXPECT_EQ(region.offset, next);
      next += region.bytes;
      EXPECT_EQ(region.not_finite, 0);
      if (!region.counts.empty()) {
        EXPECT_EQ(std::accumulate(region.counts.begin(), region.counts.end(), 0),
                  64 * spec.head_dim);
      }
    }
    EXPECT_EQ(next, BlockBytes(spec));
  }
}

TEST(DescribeTest, SaysWhatIsWrongInABlock) {
  const BlockSpec spec = ScalarSpec(64, 2, 2, 64, 64);
  std::vector<std::byte> bytes = MakeBlock(spec);
  const format::ScalarLayout at = format::ScalarBlock(64, 2, 2, 64, 64);
  StoreU16(bytes.data() + at.v_scale, 5, 0x7e00);
  StoreU16(bytes.data() + at.k_scale, 7, 0);
  const BlockDescription block = DescribeBlock(bytes, spec).value();
  EXPECT_EQ(block.regions[4].not_finite, 1);
  EXPECT_EQ(block.regions[1].zeros, 1);
  const std::string text = ToText(block);
  EXPECT_THAT(text, HasSubstr("scalar K 2 bit GK 64, V 2 bit GV 64, head_dim 64: 2560 bytes"));
  EXPECT_THAT(text, HasSubstr("NOT FINITE 1"));
  EXPECT_EQ(SpecText(LutSpec(LutTable::kNf4, 64)), "lut nf4, head_dim 64");
  EXPECT_EQ(SpecText(LutSpec(LutTable::kAnf4, 64)), "lut anf4, head_dim 64");
  const BlockSpec fp8 = {.kind = BlockKind::kFp8, .head_dim = 64};
  bytes = MakeBlock(fp8);
  bytes[77] = std::byte{0xff};
  EXPECT_EQ(DescribeBlock(bytes, fp8)->regions[0].not_finite, 1);
}

TEST(DescribeTest, RefusesAnotherSize) {
  const BlockSpec spec = ScalarSpec(64, 2, 2, 64, 64);
  const std::vector<std::byte> bytes(100);
  const absl::Status status = DescribeBlock(bytes, spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2560 bytes, not 100"));
}

}  // namespace
}  // namespace kvferry::codec
