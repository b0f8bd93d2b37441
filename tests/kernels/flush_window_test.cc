#include "kernels/flush_window.h"

#include "gmock/gmock.h"
#include "tests/kernels/gpu_blocks.h"

namespace kvferry::kernels {
namespace {

using codec::BlockSpec;
using codec::kBlockTokens;
using codec::KvSample;
using codec::KvView;
using codec::Raw16;
using codec::ScalarSpec;

constexpr int kHeads = 2, kHeadDim = 128, kRecent = 64, kSlots = kRecent + kBlockTokens;

class FlushWindowTest : public GpuBlocksTest {
 protected:
  // The oldest 64 tokens of a window whose ring begins at `first`, as a plain sample.
  static KvSample Oldest(const KvSample& window, int first) {
    KvSample oldest = codec::MakeKv(kHeads, kBlockTokens, kHeadDim, window.view.type, 0);
    for (int head = 0; head < kHeads; ++head) {
      for (int token = 0; token < kBlockTokens; ++token) {
        const int from = (head * kSlots + (first + token) % kSlots) * kHeadDim;
        const int to = (head * kBlockTokens + token) * kHeadDim;
        std::copy_n(window.k.begin() + from, kHeadDim, oldest.k.begin() + to);
        std::copy_n(window.v.begin() + from, kHeadDim, oldest.v.begin() + to);
      }
    }
    return oldest;
  }

  static QuantizeItem ItemOf(const DeviceBuffer& k, const DeviceBuffer& v, std::byte* page,
                             int first, const BlockSpec& spec) {
    return {.k = k.as<std::uint16_t>(),
            .v = v.as<std::uint16_t>(),
            .page = page,
            .head_stride = kSlots * kHeadDim,
            .token_stride = kHeadDim,
            .first_row = first,
            .ring_rows = kSlots,
            .k_bits = static_cast<std::uint8_t>(spec.k_bits),
            .v_bits = static_cast<std::uint8_t>(spec.v_bits)};
  }

  static QuantizeParams Params(const DeviceBuffer& list, int items, const DeviceBuffer& count,
                               const DeviceBuffer& fault) {
    return {.items = list.as<QuantizeItem>(),
            .max_items = items,
            .item_count = count.as<unsigned>(),
            .kv_heads = kHeads,
            .head_dim = kHeadDim,
            .type = Raw16::kBf16,
            .k_group_tokens = 64,
            .v_group_channels = 128,
            .first_fault = fault.as<std::uint64_t>()};
  }
};

TEST_F(FlushWindowTest, MakesTheBytesOfQuantizeFromARing) {
  // Three sequences with rings at different places, two layers with other bits.
  const std::vector<BlockSpec> layers = {ScalarSpec(kHeadDim, 2, 2, 64, 128),
                                         ScalarSpec(kHeadDim, 4, 8, 64, 128)};
  const std::vector<int> firsts = {0, 37, kSlots - 1};
  std::vector<DeviceBuffer> memory, pages;
  std::vector<QuantizeItem> items;
  std::vector<std::vector<std::byte>> want;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    for (std::size_t i = 0; i < firsts.size(); ++i) {
      const KvSample window = codec::MakeKv(kHeads, kSlots, kHeadDim, Raw16::kBf16,
                                            static_cast<std::uint32_t>(10 * layer + i));
      const KvSample oldest = Oldest(window, firsts[i]);
      want.push_back(Quantize(oldest.view, oldest.k, oldest.v, layers[layer]).pages);
      memory.push_back(Upload(window.k));
      memory.push_back(Upload(window.v));
      pages.push_back(Filled(PageBytes(layers[layer], kHeads)));
      items.push_back(ItemOf(memory[memory.size() - 2], memory.back(), pages.back().data(),
                             firsts[i], layers[layer]));
    }
  }
  // One more that the count leaves out.
  pages.push_back(Filled(PageBytes(layers[0], kHeads)));
  items.push_back(ItemOf(memory[0], memory[1], pages.back().data(), 0, layers[0]));
  const DeviceBuffer list = Upload(items);
  const DeviceBuffer count = Upload(std::vector<unsigned>{static_cast<unsigned>(want.size())});
  const DeviceBuffer fault = Upload(std::vector<std::uint64_t>{kNoFault});
  const QuantizeParams params = Params(list, static_cast<int>(items.size()), count, fault);
  ASSERT_TRUE(LaunchFlushWindow(params, stream()).ok());
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_TRUE(Download<std::byte>(pages[i], want[i].size()) == want[i]) << "item " << i;
  }
  for (const std::byte byte : Download<std::byte>(pages.back(), pages.back().bytes())) {
    ASSERT_EQ(byte, kFill) << "an item behind the count was flushed";
  }
  EXPECT_EQ(Download<std::uint64_t>(fault, 1)[0], kNoFault);
}

TEST_F(FlushWindowTest, AValueThatCannotBeStoredIsNamed) {
  KvSample window = codec::MakeKv(kHeads, kSlots, kHeadDim, Raw16::kBf16, 4);
  // Slot 3 of head 1 is token (3 - 100) mod 128 = 31 of the flush.
  window.v[(kSlots + 3) * kHeadDim + 9] = 0x7fc0;
  const BlockSpec spec = ScalarSpec(kHeadDim, 2, 2, 64, 128);
  const DeviceBuffer k = Upload(window.k), v = Upload(window.v);
  const DeviceBuffer page = Filled(PageBytes(spec, kHeads));
  const DeviceBuffer list = Upload(std::vector<QuantizeItem>{ItemOf(k, v, page.data(), 100, spec)});
  const DeviceBuffer count = Upload(std::vector<unsigned>{1});
  const DeviceBuffer fault = Upload(std::vector<std::uint64_t>{kNoFault});
  QuantizeParams params = Params(list, 1, count, fault);
  ASSERT_TRUE(LaunchFlushWindow(params, stream()).ok());
  const std::vector<codec::BlockOrigin> origins = {{.layer = 5, .token_begin = 640}};
  EXPECT_THAT(std::string(FaultStatus(Download<std::uint64_t>(fault, 1)[0], origins).message()),
              testing::HasSubstr("layer 5, head 1, V, token 671, channel 9: the value"));
  params.residues = list.as<std::uint32_t>();
  EXPECT_EQ(LaunchFlushWindow(params, stream()).code(), absl::StatusCode::kInvalidArgument);
  params.residues = nullptr;
  params.item_count = nullptr;
  EXPECT_EQ(LaunchFlushWindow(params, stream()).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvferry::kernels
