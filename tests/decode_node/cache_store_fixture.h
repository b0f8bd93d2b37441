#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/crc32c.h"
#include "decode_node/cache_store.h"
#include "kvcodec/cpu/cpu_backend.h"
#include "tests/decode_node/transfer_builder.h"
#include "tests/fakes/kv_values.h"

// A CacheStore over any CacheMemory, filled with values that are known everywhere.
namespace kvferry::decode {

inline constexpr int kSuiteTokens = 4 + 2 * 64 + 64 + 60;  // 2 blocks; 4 tokens before a flush

// What attention reads of one layer, in host memory and token order.
struct LayerBytes {
  std::vector<std::uint16_t> sink_k, sink_v, window_k, window_v;  // [kv_heads, tokens, head_dim]
  std::vector<std::vector<std::byte>> pages;
};

// The K and V of one token in every layer: [layers][kv_heads, head_dim].
struct TokenKv {
  std::vector<std::vector<std::uint16_t>> k, v;
};

inline TokenKv MakeToken(int token) {
  TokenKv kv;
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    auto& k = kv.k.emplace_back();
    auto& v = kv.v.emplace_back();
    for (int head = 0; head < kGeometry.kv_heads; ++head) {
      for (int channel = 0; channel < kGeometry.head_dim; ++channel) {
        k.push_back(fakes::KvValue(false, layer, head, token, channel));
        v.push_back(fakes::KvValue(true, layer, head, token, channel));
      }
    }
  }
  return kv;
}

// Machine: a default-constructible owner of a CacheMemory.
//   std::optional<std::string> Missing(): why its tests cannot run here.
//   CacheMemory& memory()
//   void Put(CacheStore&, StoredSequence&, const TokenKv&): after Append.
//   LayerBytes Read(const CacheStore&, const StoredSequence&, int layer)
template <class Machine>
class CacheStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto missing = machine.Missing()) GTEST_SKIP() << *missing;
    StartStore("kivi-4-g64");
  }
  void TearDown() override {
    if (store != nullptr) {
      EXPECT_TRUE(store->CheckConservation().ok());
    }
  }

  // Whether the memory under test has blocks of this codec: not every kind has GPU kernels.
  bool Has(const char* codec) {
    const absl::StatusOr<codec::BlockSpec> spec = TestCodec(codec).ForLayer(0, kGeometry.head_dim);
    return spec.ok() && machine.memory().Supports(*spec).ok();
  }

  void StartStore(const char* codec) {
    store.reset();
    store = CacheStore::Create({.codec = TestCodec(codec),
                                .geometry = kGeometry,
                                .pool_bytes = std::uint64_t{1} << 20},
                               machine.memory())
                .value();
  }

  std::uint64_t Pages(cache::PageState state) const {
    return store->CountPages()[static_cast<std::size_t>(state)];
  }

  // One block as prefill makes it.
  std::vector<std::byte> Page(const fakes::LayerKv& values, int layer, int token) const {
    // Pages want 128-byte alignment, which a vector does not promise.
    alignas(128) static std::byte page[1 << 16];
    const std::size_t bytes = store->page_bytes()[layer];
    EXPECT_TRUE(backend
                    ->Quantize(values.View().Tokens(token, codec::kBlockTokens),
                               store->specs()[layer], {}, {page, bytes})
                    .ok());
    return {page, page + bytes};
  }

  // The payload of a chunk as prefill makes it, with KvValue as K and V.
  std::vector<std::byte> Encode(transport::ChunkHeader& header, int tokens) const {
    if (header.kind != transport::ChunkKind::kBlocks) return RawPayload(header);
    std::vector<std::byte> payload;
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const fakes::LayerKv values(kGeometry, layer, tokens);
      for (std::uint32_t at = 0; at < header.token_count; at += codec::kBlockTokens) {
        const auto page = Page(values, layer, static_cast<int>(header.token_begin + at));
        payload.insert(payload.end(), page.begin(), page.end());
      }
    }
    header.payload_check = Crc32c(payload);
    return payload;
  }

  std::unique_ptr<StoredSequence> AdoptPrompt(int tokens, int max_new_tokens) {
    auto sequence = store->Reserve(tokens, max_new_tokens).value();
    const TransferSpec spec = MakeSpec(tokens, 4, store->codec());
    for (transport::ChunkHeader header : AllChunks(spec)) {
      if (header.token_count == 0) continue;
      const std::vector<std::byte> payload = Encode(header, tokens);
      const absl::Status status = sequence->CopyChunk(header, payload);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(sequence->FillChunk(header).ok());
    }
    EXPECT_TRUE(sequence->Publish().ok());
    return sequence;
  }

  void AppendToken(StoredSequence& sequence) {
    const TokenKv kv = MakeToken(sequence.tokens());
    sequence.Append();
    machine.Put(*store, sequence, kv);
  }
  absl::Status Flush(StoredSequence& sequence) {
    const std::vector<StoredSequence*> one = {&sequence};
    return store->Flush(one)[0];
  }
  // Appends a token and flushes when that fills the window. True: it did.
  bool Grow(StoredSequence& sequence) {
    AppendToken(sequence);
    if (!sequence.MustFlush()) return false;
    const absl::Status status = Flush(sequence);
    EXPECT_TRUE(status.ok()) << status;
    return true;
  }

  // Everything that attention would read is what one-shot prefill of `tokens` tokens makes.
  void ExpectSameAsPrefill(const StoredSequence& sequence, int tokens) {
    const codec::BlockPlan plan = codec::PlanBlocks(tokens, store->codec().window);
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const LayerBytes bytes = machine.Read(*store, sequence, layer);
      const fakes::LayerKv values(kGeometry, layer, tokens);
      ASSERT_EQ(bytes.pages.size(), static_cast<std::size_t>(plan.blocks));
      for (int block = 0; block < plan.blocks; ++block) {
        EXPECT_TRUE(bytes.pages[block] == Page(values, layer, plan.block_begin(block)))
            << "layer " << layer << " block " << block;
      }
      ExpectRaw(bytes.sink_k, bytes.sink_v, layer, 0, plan.sinks);
      ExpectRaw(bytes.window_k, bytes.window_v, layer, plan.window_begin, plan.window_tokens());
    }
  }

  static void ExpectRaw(const std::vector<std::uint16_t>& k, const std::vector<std::uint16_t>& v,
                        int layer, int begin, int count) {
    const std::size_t values = std::size_t{1} * kGeometry.kv_heads * count * kGeometry.head_dim;
    ASSERT_EQ(k.size(), values);
    ASSERT_EQ(v.size(), values);
    std::size_t at = 0;
    for (int head = 0; head < kGeometry.kv_heads; ++head) {
      for (int token = begin; token < begin + count; ++token) {
        for (int channel = 0; channel < kGeometry.head_dim; ++channel, ++at) {
          ASSERT_EQ(k[at], fakes::KvValue(false, layer, head, token, channel)) << token;
          ASSERT_EQ(v[at], fakes::KvValue(true, layer, head, token, channel)) << token;
        }
      }
    }
  }

  Machine machine;
  std::unique_ptr<codec::Backend> backend = codec::CreateCpuBackend({}).value();
  std::unique_ptr<CacheStore> store;
};

}  // namespace kvferry::decode
