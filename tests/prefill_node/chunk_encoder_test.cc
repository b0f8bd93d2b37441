#include "prefill_node/chunk_encoder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "common/crc32c.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/fakes/kv_values.h"

namespace kvferry::prefill {
namespace {

using codec::kBlockTokens;
using transport::ChunkKind;

struct alignas(128) Line {
  std::byte bytes[128];
};

class ChunkEncoder : public testing::Test {
 protected:
  static constexpr codec::CacheGeometry kGeometry{.layers = 3, .kv_heads = 2, .head_dim = 64};
  static constexpr int kTokens = 300;

  ChunkEncoder() {
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      layers_.emplace_back(kGeometry, layer, kTokens);
      specs_.push_back(codec_.ForLayer(layer, kGeometry.head_dim).value());
    }
  }

  std::vector<codec::KvView> Views() const {
    std::vector<codec::KvView> views;
    for (const fakes::LayerKv& layer : layers_) views.push_back(layer.View());
    return views;
  }
  std::span<std::byte> Out(std::size_t bytes) {
    lines_.resize((bytes + 127) / 128);
    return {lines_[0].bytes, bytes};
  }

  codec::Codec codec_ = codec::FindCodec("kivi-4-g64:layer.1=2/2").value();
  std::unique_ptr<codec::Backend> backend_ =
      codec::CreateCpuBackend({.threads = 1, .scalar = true}).value();
  std::vector<fakes::LayerKv> layers_;
  std::vector<codec::BlockSpec> specs_;
  std::vector<Line> lines_;
};

TEST_F(ChunkEncoder, BlocksAreWholePagesLayerMajor) {
  ChunkPlan chunk{.kind = ChunkKind::kBlocks,
                  .layer_begin = 0,
                  .layer_count = 2,
                  .token_begin = 68,
                  .token_count = 2 * kBlockTokens};
  const std::size_t wide = codec::PageBytes(specs_[0], 2), narrow = codec::PageBytes(specs_[1], 2);
  ASSERT_NE(wide, narrow);
  chunk.bytes = 2 * wide + 2 * narrow;
  const std::span<std::byte> out = Out(chunk.bytes);
  const auto check = EncodeChunk(chunk, specs_, Views(), *backend_, out);
  ASSERT_TRUE(check.ok()) << check.status();
  EXPECT_EQ(*check, Crc32c(out));
  std::size_t at = 0;
  for (int layer = 0; layer < 2; ++layer) {
    for (int token : {68, 132}) {
      std::vector<Line> page(codec::PageBytes(specs_[layer], 2) / 128);
      const std::span<std::byte> bytes(page[0].bytes, page.size() * 128);
      ASSERT_TRUE(backend_
                      ->Quantize(layers_[layer].View().Tokens(token, kBlockTokens), specs_[layer],
                                 {}, bytes)
                      .ok());
      EXPECT_EQ(std::memcmp(out.data() + at, bytes.data(), bytes.size()), 0)
          << "layer " << layer << ", token " << token;
      at += bytes.size();
    }
  }
  EXPECT_EQ(at, chunk.bytes);
}

TEST_F(ChunkEncoder, WindowIsKThenVPerLayer) {
  ChunkPlan chunk{.kind = ChunkKind::kWindow,
                  .layer_begin = 1,
                  .layer_count = 2,
                  .token_begin = 260,
                  .token_count = 40};
  chunk.bytes = 2 * codec::Raw16Bytes(40, 2, 64);
  const std::span<std::byte> out = Out(chunk.bytes);
  const auto check = EncodeChunk(chunk, specs_, Views(), *backend_, out);
  ASSERT_TRUE(check.ok()) << check.status();
  EXPECT_EQ(*check, Crc32c(out));
  const auto* values = reinterpret_cast<const std::uint16_t*>(out.data());
  for (int layer = 1; layer < 3; ++layer) {
    for (bool value : {false, true}) {
      for (int head = 0; head < 2; ++head) {
        for (int token = 260; token < 300; ++token) {
          for (int channel = 0; channel < 64; ++channel) {
            ASSERT_EQ(*values++, fakes::KvValue(value, layer, head, token, channel));
          }
        }
      }
    }
  }
}

TEST_F(ChunkEncoder, NanNamesLayerHeadAndPlace) {
  // [head 1][token 100][channel 5]
  layers_[2].k()[(1 * kTokens + 100) * 72 + 5] = 0x7e00;
  ChunkPlan chunk{.kind = ChunkKind::kBlocks,
                  .layer_begin = 2,
                  .layer_count = 1,
                  .token_begin = 68,
                  .token_count = kBlockTokens,
                  .bytes = codec::PageBytes(specs_[2], 2)};
  const absl::Status status =
      EncodeChunk(chunk, specs_, Views(), *backend_, Out(chunk.bytes)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("layer 2"), std::string::npos) << status;
}

TEST_F(ChunkEncoder, RefusesWhatTheModelHasNotReached) {
  std::vector<codec::KvView> views = Views();
  views[0] = layers_[0].View(100);
  ChunkPlan chunk{.kind = ChunkKind::kBlocks,
                  .layer_begin = 0,
                  .layer_count = 1,
                  .token_begin = 68,
                  .token_count = kBlockTokens,
                  .bytes = codec::PageBytes(specs_[0], 2)};
  EXPECT_EQ(EncodeChunk(chunk, specs_, views, *backend_, Out(chunk.bytes)).status().code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(EncodeChunk(chunk, specs_, Views(), *backend_, Out(chunk.bytes - 1)).status().code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace kvferry::prefill
