#pragma once

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/chunk_check.h"
#include "kernels/cuda/buffer.h"
#include "kernels/quantize_block.h"
#include "tests/kernels/gpu_test.h"
#include "tests/kvcodec/kv_samples.h"

namespace kvferry::kernels {

// Base of the tests of kernels that make or move blocks.
class GpuBlocksTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto tables = DeviceCheckTables::Create(stream());
    ASSERT_TRUE(tables.ok()) << tables.status();
    tables_.emplace(*std::move(tables));
  }

  const CheckTables* tables() const { return tables_->get(); }

  template <class T>
  DeviceBuffer Upload(const std::vector<T>& values) {
    auto buffer = DeviceBuffer::Allocate(values.size() * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(CopyAsync(buffer->data(), values.data(), values.size() * sizeof(T), stream()).ok());
    EXPECT_TRUE(stream().Synchronize().ok());
    return *std::move(buffer);
  }
  template <class T>
  std::vector<T> Download(const DeviceBuffer& buffer, std::size_t count) {
    std::vector<T> values(count);
    EXPECT_TRUE(CopyAsync(values.data(), buffer.data(), count * sizeof(T), stream()).ok());
    EXPECT_TRUE(stream().Synchronize().ok());
    return values;
  }
  // `bytes` bytes that no kernel may leave as they are.
  DeviceBuffer Filled(std::size_t bytes) {
    auto buffer = DeviceBuffer::Allocate(bytes);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(FillAsync(buffer->data(), kFill, bytes, stream()).ok());
    return *std::move(buffer);
  }

  struct Made {
    std::vector<std::byte> pages;
    std::uint32_t crc = 0;
    std::uint64_t first_fault = kNoFault;
  };

  static QuantizeParams ParamsOf(const codec::BlockSpec& spec, codec::Raw16 type, int kv_heads,
                                 int kv_head_begin = 0) {
    const auto params = QuantizeParamsOf(spec, type, kv_head_begin, kv_heads);
    EXPECT_TRUE(params.ok()) << params.status();
    return params.value_or(QuantizeParams());
  }

  // All pages of `kv` (a multiple of 64 tokens) as one chunk, one item per page. origin: of the
  // first.
  Made Quantize(const codec::KvView& kv, const std::vector<std::uint16_t>& k,
                const std::vector<std::uint16_t>& v, const codec::BlockSpec& spec,
                const codec::BlockOrigin& origin = {}) {
    const DeviceBuffer k_values = Upload(k), v_values = Upload(v);
    const std::size_t page = codec::PageBytes(spec, kv.kv_heads);
    const int items = kv.tokens / codec::kBlockTokens;
    const DeviceBuffer out = Filled(page * items + kGuardBytes);
    std::vector<QuantizeItem> list;
    for (int i = 0; i < items; ++i) {
      list.push_back({.k = k_values.as<std::uint16_t>() + (kv.k - k.data()),
                      .v = v_values.as<std::uint16_t>() + (kv.v - v.data()),
                      .page = out.data() + page * i,
                      .head_stride = kv.head_stride,
                      .token_stride = static_cast<std::int32_t>(kv.token_stride),
                      .token = origin.token_begin + i * codec::kBlockTokens,
                      .first_row = i * codec::kBlockTokens,
                      .k_bits = static_cast<std::uint8_t>(spec.k_bits),
                      .v_bits = static_cast<std::uint8_t>(spec.v_bits),
                      .layer = static_cast<std::uint16_t>(spec.layer),
                      .after_units = static_cast<std::uint32_t>(page * (items - 1 - i) / 16)});
    }
    const DeviceBuffer device_list = Upload(list);
    const DeviceBuffer residue = Upload(std::vector<std::uint32_t>{0});
    const DeviceBuffer fault = Upload(std::vector<std::uint64_t>{kNoFault});
    QuantizeParams params = ParamsOf(spec, kv.type, kv.kv_heads, origin.kv_head_begin);
    params.items = device_list.as<QuantizeItem>();
    params.max_items = items;
    params.first_fault = fault.as<std::uint64_t>();
    params.residues = residue.as<std::uint32_t>();
    params.tables = tables();
    const absl::Status status = LaunchQuantizeBlock(params, stream());
    EXPECT_TRUE(status.ok()) << status;
    Made made;
    made.pages = Download<std::byte>(out, page * items + kGuardBytes);
    for (std::size_t i = page * items; i < made.pages.size(); ++i) {
      EXPECT_EQ(made.pages[i], kFill) << "a byte behind the pages was written";
    }
    made.pages.resize(page * items);
    made.first_fault = Download<std::uint64_t>(fault, 1)[0];
    made.crc = FinishChunkCheck(Download<std::uint32_t>(residue, 1)[0], made.pages.size());
    return made;
  }

  static constexpr std::byte kFill{0xa5};
  static constexpr std::size_t kGuardBytes = 256;

 private:
  std::optional<DeviceCheckTables> tables_;
};

}  // namespace kvferry::kernels
