#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/decode_node/cache_store_fixture.h"

// What every CacheMemory has to do, seen through a CacheStore: the bytes are those that the CPU
// backend makes. Whoever includes this instantiates it.
namespace kvferry::decode {

TYPED_TEST_SUITE_P(CacheStoreTest);

TYPED_TEST_P(CacheStoreTest, AdoptedBytesAreWhatAttentionReads) {
  for (const char* codec : {"kivi-4-g64", "kivi-2-g64:layer.1=8/8", "fp16"}) {
    this->StartStore(codec);
    const auto sequence = this->AdoptPrompt(kSuiteTokens, 100);
    EXPECT_EQ(sequence->tokens(), kSuiteTokens);
    this->ExpectSameAsPrefill(*sequence, kSuiteTokens);
    EXPECT_EQ(this->Pages(cache::PageState::kPublished), 2u * kGeometry.layers);
  }
}

TYPED_TEST_P(CacheStoreTest, FlushedBlocksAreThoseOfPrefill) {
  for (const char* codec :
       {"kivi-4-g64", "kivi-2-g64:layer.1=8/8", "fp16", "int8", "fp8", "nqkv-nf4", "lm2"}) {
    if (!this->Has(codec)) continue;
    this->StartStore(codec);
    const auto sequence = this->AdoptPrompt(kSuiteTokens, 200);
    int flushes = 0;
    for (int i = 0; i < 150; ++i) {
      flushes += this->Grow(*sequence) ? 1 : 0;
      if (i % 37 == 0) this->ExpectSameAsPrefill(*sequence, sequence->tokens());
    }
    const codec::WindowSpec window = TestCodec(codec).window;
    EXPECT_EQ(flushes, codec::PlanBlocks(kSuiteTokens + 150, window).blocks -
                           codec::PlanBlocks(kSuiteTokens, window).blocks);
    this->ExpectSameAsPrefill(*sequence, kSuiteTokens + 150);
  }
}

TYPED_TEST_P(CacheStoreTest, AShortPromptGrowsThroughSinksAndWindow) {
  const auto sequence = this->AdoptPrompt(2, 400);
  for (int i = 0; i < 330; ++i) {
    this->Grow(*sequence);
    if (i < 5 || (i > 128 && i % 20 == 0)) {
      this->ExpectSameAsPrefill(*sequence, sequence->tokens());
    }
  }
}

TYPED_TEST_P(CacheStoreTest, SequencesFlushTogetherAndAFaultEndsItsOwnOnly) {
  const auto good = this->AdoptPrompt(kSuiteTokens, 200),
             bad = this->AdoptPrompt(kSuiteTokens, 200),
             last = this->AdoptPrompt(kSuiteTokens, 200);
  for (const auto& sequence : {good.get(), bad.get(), last.get()}) {
    while (!sequence->MustFlush()) this->AppendToken(*sequence);
  }
  const int tokens = good->tokens();
  EXPECT_TRUE(this->Flush(*bad).ok());
  // The NaNs come behind 64 good tokens: the next flush is still without them.
  while (!bad->MustFlush()) {
    TokenKv kv = MakeToken(bad->tokens());
    kv.k[1][kGeometry.head_dim + 3] = 0x7e00;  // NaN
    bad->Append();
    this->machine.Put(*this->store, *bad, kv);
  }
  EXPECT_TRUE(this->Flush(*bad).ok());
  while (!bad->MustFlush()) this->AppendToken(*bad);
  const std::vector<StoredSequence*> all = {good.get(), bad.get(), last.get()};
  const std::vector<absl::Status> statuses = this->store->Flush(all);
  EXPECT_TRUE(statuses[0].ok()) << statuses[0];
  EXPECT_TRUE(absl::IsInvalidArgument(statuses[1])) << statuses[1];
  EXPECT_NE(statuses[1].message().find("layer 1, head 1, K, token"), absl::string_view::npos)
      << statuses[1];
  EXPECT_TRUE(statuses[2].ok()) << statuses[2];
  this->ExpectSameAsPrefill(*good, tokens);
  this->ExpectSameAsPrefill(*last, tokens);
}

TYPED_TEST_P(CacheStoreTest, ABadChecksumLeavesPagesGranted) {
  auto sequence = this->store->Reserve(kSuiteTokens, 1).value();
  transport::ChunkHeader header =
      MakeChunk(MakeSpec(kSuiteTokens), transport::ChunkKind::kBlocks, 0);
  std::vector<std::byte> payload = this->Encode(header, kSuiteTokens);
  payload[payload.size() / 2] ^= std::byte{1};
  EXPECT_TRUE(absl::IsDataLoss(sequence->CopyChunk(header, payload)));
  EXPECT_EQ(this->Pages(cache::PageState::kGranted), 2u * kGeometry.layers);
  payload[payload.size() / 2] ^= std::byte{1};
  EXPECT_TRUE(sequence->CopyChunk(header, payload).ok());
  EXPECT_TRUE(sequence->FillChunk(header).ok());
  EXPECT_EQ(this->Pages(cache::PageState::kFilled), 2u * kGeometry.layers);
  EXPECT_TRUE(absl::IsInternal(sequence->FillChunk(header)));
}

REGISTER_TYPED_TEST_SUITE_P(CacheStoreTest, AdoptedBytesAreWhatAttentionReads,
                            FlushedBlocksAreThoseOfPrefill, AShortPromptGrowsThroughSinksAndWindow,
                            SequencesFlushTogetherAndAFaultEndsItsOwnOnly,
                            ABadChecksumLeavesPagesGranted);

}  // namespace kvferry::decode
