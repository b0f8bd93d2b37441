#include "prefill_node/chunk_layout.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace kvferry::prefill {
namespace {

using codec::kBlockTokens;
using transport::ChunkKind;

struct Case {
  std::string codec = "kivi-4-g64";
  codec::CacheGeometry geometry{.layers = 30, .kv_heads = 3, .head_dim = 64};
  int tokens = 0;
  int step_tokens = 512;
  std::size_t slot_bytes = 4 << 20;
  std::size_t target_bytes = kChunkTargetBytes;
};

struct Result {
  codec::Codec codec;
  codec::BlockPlan plan;
  std::vector<codec::BlockSpec> specs;
  absl::StatusOr<std::vector<ChunkPlan>> chunks;
};

Result Layout(const Case& test) {
  Result result{.chunks = absl::UnknownError("not run")};
  result.codec = codec::FindCodec(test.codec).value();
  result.plan = codec::PlanBlocks(test.tokens, result.codec.window);
  for (int layer = 0; layer < test.geometry.layers; ++layer) {
    result.specs.push_back(result.codec.ForLayer(layer, test.geometry.head_dim).value());
  }
  result.chunks = LayoutChunks({.plan = result.plan,
                                .geometry = test.geometry,
                                .layers = result.specs,
                                .step_tokens = test.step_tokens,
                                .slot_bytes = test.slot_bytes,
                                .target_bytes = test.target_bytes});
  return result;
}

std::size_t ChunkBytes(const Case& test, const Result& result, const ChunkPlan& chunk) {
  std::size_t bytes = 0;
  for (int layer = chunk.layer_begin; layer < chunk.layer_end(); ++layer) {
    bytes +=
        chunk.kind == ChunkKind::kBlocks
            ? codec::PageBytes(result.specs[layer], test.geometry.kv_heads) *
                  (chunk.token_count / kBlockTokens)
            : codec::Raw16Bytes(chunk.token_count, test.geometry.kv_heads, test.geometry.head_dim);
  }
  return bytes;
}

ChunkKind KindOf(const codec::BlockPlan& plan, int token) {
  if (token < plan.sinks) return ChunkKind::kSinks;
  return token < plan.window_begin ? ChunkKind::kBlocks : ChunkKind::kWindow;
}

// Every (layer, token) once, by a chunk of its kind, not before it is ready, in slots that fit.
void CheckLayout(const Case& test) {
  SCOPED_TRACE(test.codec + ", " + std::to_string(test.tokens) + " tokens, steps of " +
               std::to_string(test.step_tokens) + ", slot " + std::to_string(test.slot_bytes));
  const Result result = Layout(test);
  ASSERT_TRUE(result.chunks.ok()) << result.chunks.status();
  std::vector<int> covered(test.geometry.layers * test.tokens);
  std::size_t total = 0;
  std::pair<int, int> last_ready{0, 0};
  for (const ChunkPlan& chunk : *result.chunks) {
    EXPECT_EQ(chunk.bytes, ChunkBytes(test, result, chunk));
    EXPECT_LE(chunk.bytes, test.slot_bytes);
    EXPECT_GE(chunk.ready_tokens, chunk.token_begin + chunk.token_count);
    EXPECT_LE(chunk.ready_tokens, test.tokens);
    const std::pair<int, int> ready{chunk.ready_tokens, chunk.layer_end()};
    EXPECT_GE(ready, last_ready) << "a chunk waits behind one that is ready later";
    last_ready = ready;
    total += chunk.bytes;
    for (int layer = chunk.layer_begin; layer < chunk.layer_end(); ++layer) {
      for (int t = chunk.token_begin; t < chunk.token_begin + chunk.token_count; ++t) {
        ++covered[layer * test.tokens + t];
        ASSERT_EQ(chunk.kind, KindOf(result.plan, t)) << "token " << t;
      }
    }
    if (chunk.kind == ChunkKind::kBlocks) {
      EXPECT_EQ((chunk.token_begin - result.plan.sinks) % kBlockTokens, 0);
      EXPECT_EQ(chunk.token_count % kBlockTokens, 0);
    }
  }
  for (std::size_t i = 0; i < covered.size(); ++i) {
    ASSERT_EQ(covered[i], 1) << "layer " << i / test.tokens << ", token " << i % test.tokens;
  }
  EXPECT_EQ(total, codec::HandoffBytes(test.tokens, result.codec, test.geometry).value());
}

TEST(ChunkLayout, CoversEveryByteOnce) {
  for (const char* codec : {"kivi-4-g64", "kivi-2", "fp16", "kivi-2-g64:sinks=0", "lm3",
                            "kivi-4-g64:sinks=70,layer.0=8/8,layer.7=2/2"}) {
    for (int tokens : {1, 3, 4, 5, 67, 68, 131, 132, 133, 196, 511, 512, 513, 1000, 1600}) {
      for (int step : {64, 512}) {
        CheckLayout({.codec = codec, .tokens = tokens, .step_tokens = step});
      }
    }
  }
}

TEST(ChunkLayout, SmallSlotsSplitLayersByBlocks) {
  // One page of 3 heads is 13.5 KiB in 4 bit; the window of 127 tokens needs 96 KiB a layer.
  for (std::size_t slot : {100'000u, 150'000u, 1'000'000u}) {
    CheckLayout({.tokens = 1603, .slot_bytes = slot});
    CheckLayout({.tokens = 1603, .slot_bytes = slot, .target_bytes = 1});
  }
}

TEST(ChunkLayout, AShortPromptIsOneChunkPerKind) {
  const Result result = Layout({.tokens = 70});
  ASSERT_TRUE(result.chunks.ok());
  std::map<ChunkKind, int> kinds;
  for (const ChunkPlan& chunk : *result.chunks) ++kinds[chunk.kind];
  EXPECT_EQ(kinds[ChunkKind::kSinks], 1);
  EXPECT_EQ(kinds[ChunkKind::kBlocks], 0);
  EXPECT_EQ(kinds[ChunkKind::kWindow], 2) << "66 tokens of 30 layers are 1.45 MiB";
}

TEST(ChunkLayout, GathersLayersUpToTheTarget) {
  const Case test{.tokens = 1600};
  const Result result = Layout(test);
  ASSERT_TRUE(result.chunks.ok());
  for (const ChunkPlan& chunk : *result.chunks) {
    const std::size_t layer = chunk.bytes / chunk.layer_count;
    EXPECT_LT(chunk.bytes - layer, test.target_bytes) << "could have been sent a layer earlier";
  }
}

TEST(ChunkLayout, RefusesASlotBelowOnePage) {
  const Result result = Layout({.tokens = 512, .slot_bytes = 13'000});
  EXPECT_EQ(result.chunks.status().code(), absl::StatusCode::kInvalidArgument);
  const Result window = Layout({.tokens = 100, .slot_bytes = 50'000});
  EXPECT_EQ(window.chunks.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(window.chunks.status().message().find("send_slot_bytes"), std::string::npos);
}

TEST(ChunkLayout, RefusesNonsense) {
  EXPECT_EQ(Layout({.tokens = 0}).chunks.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Layout({.tokens = 9, .step_tokens = 0}).chunks.status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvferry::prefill
