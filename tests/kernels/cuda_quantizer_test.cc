#include "kernels/cuda_quantizer.h"

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/crc32c.h"
#include "gmock/gmock.h"
#include "kernels/cuda/buffer.h"
#include "tests/kernels/gpu_test.h"
#include "tests/kvcodec/kv_samples.h"

namespace kvferry::kernels {
namespace {

using codec::BlockSpec;
using codec::kBlockTokens;
using codec::KvSample;
using codec::KvView;
using codec::Raw16;

// The quantizer of a prefill worker on a GPU against that of one on CPUs.
class CudaQuantizerTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto quantizer = CreateCudaQuantizer(stream());
    ASSERT_TRUE(quantizer.ok()) << quantizer.status();
    quantizer_ = *std::move(quantizer);
    cpu_ = codec::MakeBackend(false);
  }

  // K and V in device memory when the stream is there, as a model leaves them.
  KvView ToDevice(const KvSample& kv) {
    const std::size_t bytes = kv.k.size() * 2;
    memory_ = DeviceBuffer::Allocate(2 * bytes).value();
    EXPECT_TRUE(CopyAsync(memory_.data(), kv.k.data(), bytes, stream()).ok());
    EXPECT_TRUE(CopyAsync(memory_.data() + bytes, kv.v.data(), bytes, stream()).ok());
    KvView view = kv.view;
    view.k = memory_.as<std::uint16_t>();
    view.v = view.k + kv.k.size();
    view.ready = quantizer_->MarkReady();
    return view;
  }

  DeviceBuffer memory_;
  std::unique_ptr<codec::Quantizer> quantizer_;
  std::unique_ptr<codec::Backend> cpu_;
};

TEST_F(CudaQuantizerTest, PagesEqualTheCpus) {
  for (const int bits : {2, 4}) {
    for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
      const BlockSpec spec = codec::ScalarSpec(64, bits, bits, 64, 64);
      const KvSample kv = codec::MakeKv(3, 4 * kBlockTokens + 4, 64, type, 5);
      const std::size_t bytes = 4 * codec::PageBytes(spec, 3);
      codec::GuardedPage ours(bytes), expected(bytes);
      const KvView view = ToDevice(kv).Tokens(4, 4 * kBlockTokens);
      ASSERT_TRUE(quantizer_->QuantizePages(view, spec, {}, ours.span()).ok());
      ASSERT_TRUE(
          cpu_->QuantizePages(kv.view.Tokens(4, 4 * kBlockTokens), spec, {}, expected.span()).ok());
      ours.Check();
      EXPECT_EQ(std::memcmp(ours.data(), expected.data(), bytes), 0) << bits;
    }
  }
}

TEST_F(CudaQuantizerTest, WritesAndChecksASlotOnTheGpu) {
  const BlockSpec spec = codec::ScalarSpec(64, 4, 4, 64, 64);
  const KvSample kv = codec::MakeKv(3, 2 * kBlockTokens + 5, 64, Raw16::kFp16, 8);
  const std::size_t pages = 2 * codec::PageBytes(spec, 3), raw = codec::Raw16Bytes(5, 3, 64);
  codec::GuardedPage memory(pages + raw);  // aligned, as the CPU wants its pages
  const std::span<std::byte> expected = memory.span();
  std::vector<std::byte> got(pages + raw);
  const KvView host = kv.view, blocks = host.Tokens(0, 2 * kBlockTokens);
  ASSERT_TRUE(cpu_->QuantizePages(blocks, spec, {}, expected.first(pages)).ok());
  ASSERT_TRUE(cpu_->CopyTokens(host.Tokens(2 * kBlockTokens, 5), expected.last(raw)).ok());

  const DeviceBuffer slot = DeviceBuffer::Allocate(pages + raw).value();
  const std::span<std::byte> out(slot.data(), slot.bytes());
  const KvView view = ToDevice(kv);
  ASSERT_TRUE(
      quantizer_->QuantizePages(view.Tokens(0, 2 * kBlockTokens), spec, {}, out.first(pages)).ok());
  ASSERT_TRUE(quantizer_->CopyTokens(view.Tokens(2 * kBlockTokens, 5), out.last(raw)).ok());
  const auto crc = quantizer_->Check(out);
  ASSERT_TRUE(crc.ok()) << crc.status();
  EXPECT_EQ(*crc, *cpu_->Check(expected));
  ASSERT_TRUE(CopyAsync(got.data(), slot.data(), got.size(), stream()).ok());
  ASSERT_TRUE(stream().Synchronize().ok());
  EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin()));
  EXPECT_EQ(*quantizer_->Check(got), *crc);  // on the host
}

// Layers of one chunk: some share a launch, some differ in bits, in kind, in how many pages.
TEST_F(CudaQuantizerTest, RunsOfSeveralLayersEqualTheCpus) {
  const KvSample kv = codec::MakeKv(3, 4 * kBlockTokens + 4, 64, Raw16::kBf16, 9);
  const KvView view = ToDevice(kv);
  const BlockSpec int8{.kind = codec::BlockKind::kInt8, .head_dim = 64};
  const std::pair<BlockSpec, int> layers[] = {{codec::ScalarSpec(64, 2, 2, 64, 64), 4},
                                              {codec::ScalarSpec(64, 4, 2, 64, 64), 3},
                                              {codec::ScalarSpec(64, 4, 4, 32, 64), 4},
                                              {int8, 2},
                                              {int8, 0},
                                              {codec::ScalarSpec(64, 2, 2, 64, 64), 1}};
  std::vector<codec::PageRun> ours, cpus;
  std::size_t bytes = 0;
  int layer = 3, begin = 0;
  for (const auto& [spec, pages] : layers) {
    const codec::BlockOrigin origin{.layer = layer++, .token_begin = begin};
    ours.push_back({view.Tokens(begin, pages * kBlockTokens), spec, origin});
    cpus.push_back({kv.view.Tokens(begin, pages * kBlockTokens), spec, origin});
    bytes += pages * codec::PageBytes(spec, 3);
    begin = (begin + 1) % 5;
  }
  codec::GuardedPage expected(bytes), on_host(bytes);
  const auto crc = cpu_->QuantizeRuns(cpus, expected.span());
  ASSERT_TRUE(crc.ok()) << crc.status();
  EXPECT_EQ(*crc, Crc32c(expected.span()));

  const auto host_crc = quantizer_->QuantizeRuns(ours, on_host.span());
  ASSERT_TRUE(host_crc.ok()) << host_crc.status();
  on_host.Check();
  EXPECT_EQ(*host_crc, *crc);
  EXPECT_EQ(std::memcmp(on_host.data(), expected.data(), bytes), 0);

  const DeviceBuffer slot = DeviceBuffer::Allocate(bytes + 16).value();
  for (const std::size_t at : {0, 16}) {  // 16: pages go there by way of aligned ones
    ASSERT_TRUE(FillAsync(slot.data(), std::byte{1}, slot.bytes(), stream()).ok());
    ASSERT_TRUE(stream().Synchronize().ok());
    const auto slot_crc = quantizer_->QuantizeRuns(ours, {slot.data() + at, bytes});
    ASSERT_TRUE(slot_crc.ok()) << slot_crc.status();
    EXPECT_EQ(*slot_crc, *crc);
    std::vector<std::byte> got(bytes);
    ASSERT_TRUE(CopyAsync(got.data(), slot.data() + at, bytes, stream()).ok());
    ASSERT_TRUE(stream().Synchronize().ok());
    EXPECT_EQ(std::memcmp(got.data(), expected.data(), bytes), 0) << at;
  }
}

TEST_F(CudaQuantizerTest, AFaultInALaterLaunchIsNamed) {
  KvSample bad = codec::MakeKv(2, kBlockTokens, 64, Raw16::kFp16, 8);
  bad.k[static_cast<std::size_t>(kBlockTokens + 7) * 64 + 9] = 0x7c00;  // head 1, token 7
  const KvView view = ToDevice(bad);
  KvView good = view;
  good.kv_heads = 1;
  const BlockSpec two = codec::ScalarSpec(64, 2, 2, 64, 64),
                  eight{.kind = codec::BlockKind::kInt8, .head_dim = 64};
  const codec::PageRun runs[] = {{good, two, {.layer = 1}}, {view, eight, {.layer = 2}}};
  std::vector<std::byte> pages(codec::PageBytes(two, 1) + codec::PageBytes(eight, 2));
  const absl::Status status = quantizer_->QuantizeRuns(runs, pages).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("layer 2, head 1, K, token 7, channel 9"));
}

TEST_F(CudaQuantizerTest, TokensAreCopied) {
  const KvSample kv = codec::MakeKv(3, 70, 64, Raw16::kBf16, 6);
  const KvView view = ToDevice(kv);
  for (const auto& [begin, count] : {std::pair{0, 4}, {4, 66}, {7, 0}}) {
    const std::size_t bytes = codec::Raw16Bytes(count, 3, 64);
    codec::GuardedPage ours(bytes), expected(bytes);
    ASSERT_TRUE(quantizer_->CopyTokens(view.Tokens(begin, count), ours.span()).ok());
    ASSERT_TRUE(cpu_->CopyTokens(kv.view.Tokens(begin, count), expected.span()).ok());
    ours.Check();
    EXPECT_EQ(std::memcmp(ours.data(), expected.data(), bytes), 0) << count;
  }
}

// The producer still fills half a gigabyte when the quantizer is asked for what comes after it.
TEST_F(CudaQuantizerTest, WaitsForTheMarkOfTheView) {
  const BlockSpec spec = codec::ScalarSpec(64, 4, 4, 64, 64);
  auto ballast = DeviceBuffer::Allocate(std::size_t{512} << 20);
  ASSERT_TRUE(ballast.ok()) << ballast.status();
  const std::size_t bytes = codec::PageBytes(spec, 2);
  codec::GuardedPage expected(bytes), ours(bytes);
  for (int run = 0; run < 300; ++run) {  // more than there are marks
    const KvSample kv = codec::MakeKv(2, kBlockTokens, 64, Raw16::kFp16, run);
    if (run % 50 == 0) {
      ASSERT_TRUE(FillAsync(ballast->data(), std::byte{1}, ballast->bytes(), stream()).ok());
    }
    const KvView view = ToDevice(kv);
    ASSERT_TRUE(quantizer_->Quantize(view, spec, {}, ours.span()).ok());
    ASSERT_TRUE(cpu_->Quantize(kv.view, spec, {}, expected.span()).ok());
    ASSERT_EQ(std::memcmp(ours.data(), expected.data(), bytes), 0) << run;
  }
}

TEST_F(CudaQuantizerTest, WhatCannotBeStoredIsNamedAsOnTheCpu) {
  const BlockSpec spec = codec::ScalarSpec(64, 2, 2, 32, 32);
  KvSample kv = codec::MakeKv(2, 3 * kBlockTokens, 64, Raw16::kFp16, 8);
  kv.v[static_cast<std::size_t>(3 * kBlockTokens + 70) * 64 + 9] = 0x7e00;  // head 1, token 70
  codec::GuardedPage pages(3 * codec::PageBytes(spec, 2));
  const codec::BlockOrigin origin{.layer = 7, .token_begin = 4};
  const absl::Status ours = quantizer_->QuantizePages(ToDevice(kv), spec, origin, pages.span());
  const absl::Status cpus = cpu_->QuantizePages(kv.view, spec, origin, pages.span());
  const auto fault = [](const absl::Status& status) {
    const std::string message(status.message());
    return message.substr(message.find("layer"));
  };
  EXPECT_EQ(ours.code(), cpus.code());
  EXPECT_EQ(fault(ours), fault(cpus));
  EXPECT_THAT(fault(ours), testing::HasSubstr("layer 7, head 1, V, token 74, channel 9"));
  // And the next call is not harmed by it.
  const KvSample good = codec::MakeKv(2, kBlockTokens, 64, Raw16::kFp16, 9);
  EXPECT_TRUE(
      quantizer_->Quantize(ToDevice(good), spec, {}, pages.span().first(codec::PageBytes(spec, 2)))
          .ok());
}

TEST_F(CudaQuantizerTest, WrongShapesAreRefused) {
  const BlockSpec spec = codec::ScalarSpec(64, 2, 2, 32, 32);
  const KvSample kv = codec::MakeKv(1, kBlockTokens + 1, 64, Raw16::kFp16, 8);
  const KvView view = ToDevice(kv);
  std::vector<std::byte> page(codec::PageBytes(spec, 1));
  EXPECT_FALSE(quantizer_->Quantize(view, spec, {}, page).ok());
  EXPECT_FALSE(
      quantizer_->QuantizePages(view.Tokens(0, 64), spec, {}, std::span(page).first(8)).ok());
  EXPECT_FALSE(quantizer_->CopyTokens(view, page).ok());
}

}  // namespace
}  // namespace kvferry::kernels
