#include "kernels/dequantize_block.h"

#include "gmock/gmock.h"
#include "kvcodec/half.h"
#include "tests/kernels/gpu_blocks.h"

namespace kvferry::kernels {
namespace {

using codec::BlockKind;
using codec::BlockSpec;
using codec::kBlockTokens;
using codec::Raw16;
using codec::ScalarSpec;

class DequantizeBlockTest : public GpuBlocksTest {};

TEST_F(DequantizeBlockTest, ValuesAreThoseOfTheCpu) {
  const std::unique_ptr<codec::Backend> cpu = codec::MakeBackend(true);
  const std::vector<BlockSpec> specs = {
      ScalarSpec(64, 1, 8, 32, 32),
      ScalarSpec(96, 3, 1, 64, 32),
      ScalarSpec(128, 2, 2, 64, 128),
      ScalarSpec(128, 4, 3, 32, 64),
      ScalarSpec(256, 3, 4, 64, 128),
      {.kind = BlockKind::kInt8, .head_dim = 96},
      {.kind = BlockKind::kFp8, .head_dim = 64},
      {.kind = BlockKind::kLut, .head_dim = 128, .table = codec::LutTable::kNf4},
      {.kind = BlockKind::kLut, .head_dim = 64, .table = codec::LutTable::kAnf4},
      {.kind = BlockKind::kLut, .head_dim = 96, .table = codec::LutTable::kAnf4},
      {.kind = BlockKind::kLut, .head_dim = 96, .table = codec::LutTable::kLm3},
      {.kind = BlockKind::kLut, .head_dim = 256, .table = codec::LutTable::kLm2},
      {.kind = BlockKind::kRaw16, .raw_type = Raw16::kBf16, .head_dim = 128}};
  for (const BlockSpec& spec : specs) {
    const int d = spec.head_dim;
    const codec::KvSample kv = codec::MakeKv(2, kBlockTokens, d, Raw16::kBf16, 6);
    std::vector<std::byte> page(PageBytes(spec, 2) + 128);
    std::byte* begin = page.data() + (128 - reinterpret_cast<std::uintptr_t>(page.data()) % 128);
    ASSERT_TRUE(cpu->Quantize(kv.view, spec, {}, {begin, PageBytes(spec, 2)}).ok());
    const std::size_t values = std::size_t{2} * kBlockTokens * d;
    std::vector<float> k(values), v(values);
    ASSERT_TRUE(cpu->Dequantize({begin, PageBytes(spec, 2)}, spec, {}, 2, k, v).ok());

    const DeviceBuffer device_page =
        Upload(std::vector<std::byte>(begin, begin + PageBytes(spec, 2)));
    const DeviceBuffer list = Upload(std::vector<const std::byte*>{device_page.data()});
    const DeviceBuffer k_out = Filled(values * 4), v_out = Filled(values * 4);
    DequantizeParams params = {.pages = list.as<const std::byte*>(),
                               .page_count = 1,
                               .kv_heads = 2,
                               .spec = spec,
                               .k = k_out.data(),
                               .v = v_out.data()};
    ASSERT_TRUE(LaunchDequantizeBlock(params, stream()).ok());
    EXPECT_EQ(Download<float>(k_out, values), k) << SpecName(spec);
    EXPECT_EQ(Download<float>(v_out, values), v) << SpecName(spec);
    for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
      params.type = type == Raw16::kFp16 ? DequantizedType::kFp16 : DequantizedType::kBf16;
      ASSERT_TRUE(LaunchDequantizeBlock(params, stream()).ok());
      const std::vector<std::uint16_t> got = Download<std::uint16_t>(v_out, values);
      for (std::size_t i = 0; i < values; ++i) ASSERT_EQ(got[i], codec::ToRaw16(type, v[i])) << i;
    }
  }
}

TEST_F(DequantizeBlockTest, WrongShapesAreRefused) {
  const DeviceBuffer memory = Filled(256);
  const DequantizeParams good = {.pages = memory.as<const std::byte*>(),
                                 .page_count = 1,
                                 .kv_heads = 1,
                                 .spec = ScalarSpec(64, 2, 2, 64, 64),
                                 .k = memory.data(),
                                 .v = memory.data()};
  const auto expect_refused = [&](const auto& change) {
    DequantizeParams params = good;
    change(params);
    EXPECT_EQ(LaunchDequantizeBlock(params, stream()).code(), absl::StatusCode::kInvalidArgument);
  };
  expect_refused([](DequantizeParams& params) { params.spec.k_bits = 5; });
  expect_refused([](DequantizeParams& params) { params.kv_heads = 0; });
  expect_refused([](DequantizeParams& params) { params.pages = nullptr; });
  expect_refused([](DequantizeParams& params) { params.v = nullptr; });
}

}  // namespace
}  // namespace kvferry::kernels
