#include "decode_node/cache_store.h"

#include <gtest/gtest.h>

#include <cstring>

#include "common/crc32c.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/decode_node/transfer_builder.h"
#include "tests/fakes/kv_values.h"

namespace kvferry::decode {
namespace {

using cache::PageState;
using fakes::KvValue;
using transport::ChunkHeader;
using transport::ChunkKind;

constexpr int kTokens = 4 + 2 * 64 + 64 + 60;  // 2 blocks, 124 window tokens: 4 before a flush

class CacheStoreTest : public ::testing::Test {
 protected:
  CacheStoreTest() {
    backend = codec::CreateCpuBackend({}).value();
    store = CacheStore::Create(
                {.codec = TestCodec(), .geometry = kGeometry, .pool_bytes = std::uint64_t{1} << 20},
                *backend)
                .value();
  }
  ~CacheStoreTest() override { EXPECT_TRUE(store->CheckConservation().ok()); }

  std::uint64_t Pages(PageState state) const {
    return store->CountPages()[static_cast<std::size_t>(state)];
  }

  // The payload of a chunk as prefill makes it, with KvValue as K and V.
  std::vector<std::byte> Encode(ChunkHeader& header, int tokens) const {
    if (header.kind != ChunkKind::kBlocks) return RawPayload(header);
    std::vector<std::byte> payload;
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const fakes::LayerKv values(kGeometry, layer, tokens);
      for (std::uint32_t at = 0; at < header.token_count; at += codec::kBlockTokens) {
        // Pages want 128-byte alignment, which a vector does not promise.
        alignas(128) static std::byte page[1 << 16];
        const std::size_t bytes = store->page_bytes()[layer];
        EXPECT_TRUE(backend
                        ->Quantize(values.View().Tokens(header.token_begin + at, 64),
                                   store->specs()[layer], {}, {page, bytes})
                        .ok());
        payload.insert(payload.end(), page, page + bytes);
      }
    }
    header.payload_check = Crc32c(payload);
    return payload;
  }

  std::unique_ptr<StoredSequence> AdoptPrompt(int tokens, int max_new_tokens) {
    auto sequence = store->Reserve(tokens, max_new_tokens).value();
    const TransferSpec spec = MakeSpec(tokens);
    for (ChunkHeader header : AllChunks(spec)) {
      if (header.token_count == 0) continue;
      const std::vector<std::byte> payload = Encode(header, tokens);
      EXPECT_TRUE(sequence->CopyChunk(header, payload).ok());
      EXPECT_TRUE(sequence->FillChunk(header).ok());
    }
    EXPECT_TRUE(sequence->Publish().ok());
    return sequence;
  }

  void AppendToken(StoredSequence& sequence) const {
    const int token = sequence.tokens();
    sequence.Append();
    std::vector<std::uint16_t> k, v;
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      k.clear(), v.clear();
      for (int head = 0; head < kGeometry.kv_heads; ++head) {
        for (int channel = 0; channel < kGeometry.head_dim; ++channel) {
          k.push_back(KvValue(false, layer, head, token, channel));
          v.push_back(KvValue(true, layer, head, token, channel));
        }
      }
      sequence.Put(layer, k.data(), v.data());
    }
  }

  // Everything that attention would read is what one-shot prefill of `tokens` tokens makes.
  void ExpectSameAsPrefill(const StoredSequence& sequence, int tokens) const {
    const codec::BlockPlan plan = codec::PlanBlocks(tokens, store->codec().window);
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const codec::SequenceKv kv = sequence.View(layer);
      const fakes::LayerKv values(kGeometry, layer, tokens);
      ASSERT_EQ(kv.pages.size(), static_cast<std::size_t>(plan.blocks));
      alignas(128) static std::byte page[1 << 16];
      for (int block = 0; block < plan.blocks; ++block) {
        const std::size_t bytes = store->page_bytes()[layer];
        ASSERT_TRUE(backend
                        ->Quantize(values.View().Tokens(plan.block_begin(block), 64),
                                   store->specs()[layer], {}, {page, bytes})
                        .ok());
        EXPECT_EQ(std::memcmp(page, kv.pages[block], bytes), 0)
            << "layer " << layer << " block " << block;
      }
      ExpectRaw(kv.sinks, layer, 0, plan.sinks);
      ExpectRaw(kv.window, layer, plan.window_begin, plan.window_tokens());
    }
  }

  static void ExpectRaw(const codec::KvView& view, int layer, int begin, int count) {
    ASSERT_EQ(view.tokens, count);
    for (int head = 0; head < kGeometry.kv_heads; ++head) {
      for (int token = 0; token < count; ++token) {
        const std::int64_t at = head * view.head_stride + token * view.token_stride;
        for (int channel = 0; channel < kGeometry.head_dim; ++channel) {
          ASSERT_EQ(view.k[at + channel], KvValue(false, layer, head, begin + token, channel));
          ASSERT_EQ(view.v[at + channel], KvValue(true, layer, head, begin + token, channel));
        }
      }
    }
  }

  std::unique_ptr<codec::Backend> backend;
  std::unique_ptr<CacheStore> store;
};

TEST_F(CacheStoreTest, AdoptedBytesAreWhatAttentionReads) {
  const auto sequence = AdoptPrompt(kTokens, 100);
  EXPECT_EQ(sequence->tokens(), kTokens);
  ExpectSameAsPrefill(*sequence, kTokens);
  EXPECT_EQ(Pages(PageState::kPublished), 2u * kGeometry.layers);
}

TEST_F(CacheStoreTest, FlushedBlocksAreThoseOfPrefill) {
  const auto sequence = AdoptPrompt(kTokens, 200);
  int flushes = 0;
  for (int i = 0; i < 150; ++i) {
    AppendToken(*sequence);
    if (sequence->MustFlush()) {
      ASSERT_TRUE(sequence->Flush().ok());
      ++flushes;
    }
    if (i % 37 == 0) ExpectSameAsPrefill(*sequence, sequence->tokens());
  }
  EXPECT_EQ(flushes, 3);
  ExpectSameAsPrefill(*sequence, kTokens + 150);
}

TEST_F(CacheStoreTest, AShortPromptGrowsThroughSinksAndWindow) {
  const auto sequence = AdoptPrompt(2, 200);
  for (int i = 0; i < 140; ++i) {
    AppendToken(*sequence);
    if (sequence->MustFlush()) {
      ASSERT_TRUE(sequence->Flush().ok());
    }
    if (i < 5 || i > 128) ExpectSameAsPrefill(*sequence, sequence->tokens());
  }
}

TEST_F(CacheStoreTest, GrowthIsReserved) {
  const auto sequence = AdoptPrompt(kTokens, 100);
  for (int i = 0; i < 99; ++i) {  // the last token never enters the cache
    AppendToken(*sequence);
    if (sequence->MustFlush()) {
      ASSERT_TRUE(sequence->Flush().ok());
    }
  }
  EXPECT_EQ(Pages(PageState::kGranted), 0u);
}

TEST_F(CacheStoreTest, ABadChecksumLeavesPagesGranted) {
  auto sequence = store->Reserve(kTokens, 1).value();
  ChunkHeader header = MakeChunk(MakeSpec(kTokens), ChunkKind::kBlocks, 0);
  std::vector<std::byte> payload = Encode(header, kTokens);
  payload[payload.size() / 2] ^= std::byte{1};
  EXPECT_TRUE(absl::IsDataLoss(sequence->CopyChunk(header, payload)));
  EXPECT_EQ(Pages(PageState::kGranted), 2u * kGeometry.layers);
  payload[payload.size() / 2] ^= std::byte{1};
  EXPECT_TRUE(sequence->CopyChunk(header, payload).ok());
  EXPECT_TRUE(sequence->FillChunk(header).ok());
  EXPECT_EQ(Pages(PageState::kFilled), 2u * kGeometry.layers);
  EXPECT_TRUE(absl::IsInternal(sequence->FillChunk(header)));
}

TEST_F(CacheStoreTest, APartlyFilledSequenceCannotBePublished) {
  const auto sequence = store->Reserve(kTokens, 1).value();
  EXPECT_TRUE(absl::IsInternal(sequence->Publish()));
}

TEST_F(CacheStoreTest, QuarantineHoldsOnlyWhatMayBeWritten) {
  const std::uint32_t rows = store->free_rows();
  auto sequence = store->Reserve(kTokens, 300).value();
  // One block of all layers is here, of the other one only the first layer.
  ChunkHeader header = MakeChunk(MakeSpec(kTokens), ChunkKind::kBlocks, 0);
  header.token_count = 64;
  ASSERT_TRUE(sequence->FillChunk(header).ok());
  header.token_begin += 64;
  header.layer_count = 1;
  ASSERT_TRUE(sequence->FillChunk(header).ok());
  ASSERT_TRUE(sequence->Quarantine().ok());
  EXPECT_TRUE(sequence->Quarantine().ok());  // idempotent
  EXPECT_EQ(Pages(PageState::kQuarantined), kGeometry.layers - 1u);
  EXPECT_EQ(store->free_rows(), rows - 1);
  EXPECT_TRUE(store->CheckConservation().ok());
  sequence.reset();
  EXPECT_EQ(store->free_rows(), rows);
}

TEST_F(CacheStoreTest, EverythingComesBack) {
  const std::uint32_t rows = store->free_rows();
  {
    const auto one = AdoptPrompt(kTokens, 100);
    const auto two = store->Reserve(kTokens, 100).value();
    EXPECT_EQ(store->sequences(), 2u);
    EXPECT_EQ(store->Held().size(), 2u);
    EXPECT_EQ(store->Held()[0].rows, cache::RowsNeeded(kTokens, 100, store->codec().window));
  }
  EXPECT_EQ(store->free_rows(), rows);
  EXPECT_EQ(store->sequences(), 0u);
}

TEST_F(CacheStoreTest, AFullPoolRefuses) {
  const auto all = store->Reserve(4 + 64 + 64 * static_cast<int>(store->rows()), 1).value();
  EXPECT_EQ(store->free_rows(), 0u);
  EXPECT_TRUE(absl::IsResourceExhausted(store->Reserve(kTokens, 1).status()));
  EXPECT_TRUE(store->Reserve(10, 1).ok());  // needs no row
}

TEST_F(CacheStoreTest, APoolWithoutOneRowIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      CacheStore::Create({.codec = TestCodec(), .geometry = kGeometry, .pool_bytes = 1000},
                         *backend)
          .status()));
}

}  // namespace
}  // namespace kvferry::decode
