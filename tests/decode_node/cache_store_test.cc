#include "decode_node/cache_store.h"

#include <gtest/gtest.h>

#include "decode_node/host_cache_memory.h"
#include "tests/decode_node/cache_store_suite.h"

namespace kvferry::decode {
namespace {

using cache::PageState;
using transport::ChunkHeader;
using transport::ChunkKind;

constexpr int kTokens = kSuiteTokens;

class Host {
 public:
  static std::optional<std::string> Missing() { return std::nullopt; }
  CacheMemory& memory() { return memory_; }

  static void Put(CacheStore&, StoredSequence& sequence, const TokenKv& kv) {
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      sequence.Put(layer, kv.k[layer].data(), kv.v[layer].data());
    }
  }

  static LayerBytes Read(const CacheStore& store, const StoredSequence& sequence, int layer) {
    const codec::SequenceKv kv = sequence.View(layer);
    LayerBytes bytes{.sink_k = Rows(kv.sinks, kv.sinks.k),
                     .sink_v = Rows(kv.sinks, kv.sinks.v),
                     .window_k = Rows(kv.window, kv.window.k),
                     .window_v = Rows(kv.window, kv.window.v)};
    for (const std::byte* page : kv.pages) {
      bytes.pages.emplace_back(page, page + store.page_bytes()[layer]);
    }
    return bytes;
  }

 private:
  static std::vector<std::uint16_t> Rows(const codec::KvView& view, const std::uint16_t* values) {
    std::vector<std::uint16_t> rows;
    for (int head = 0; head < view.kv_heads; ++head) {
      for (int token = 0; token < view.tokens; ++token) {
        const std::uint16_t* row = values + head * view.head_stride + token * view.token_stride;
        rows.insert(rows.end(), row, row + view.head_dim);
      }
    }
    return rows;
  }

  std::unique_ptr<codec::Backend> backend_ = codec::CreateCpuBackend({}).value();
  HostCacheMemory memory_{*backend_};
};

INSTANTIATE_TYPED_TEST_SUITE_P(Host, CacheStoreTest, Host);

// The bookkeeping, which is the same for every memory.
using CacheStoreBooksTest = CacheStoreTest<Host>;

TEST_F(CacheStoreBooksTest, GrowthIsReserved) {
  const auto sequence = AdoptPrompt(kTokens, 100);
  for (int i = 0; i < 99; ++i) Grow(*sequence);  // the last token never enters the cache
  EXPECT_EQ(Pages(PageState::kGranted), 0u);
}

TEST_F(CacheStoreBooksTest, APartlyFilledSequenceCannotBePublished) {
  const auto sequence = store->Reserve(kTokens, 1).value();
  EXPECT_TRUE(absl::IsInternal(sequence->Publish()));
}

TEST_F(CacheStoreBooksTest, QuarantineHoldsOnlyWhatMayBeWritten) {
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

TEST_F(CacheStoreBooksTest, EverythingComesBack) {
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

TEST_F(CacheStoreBooksTest, AFullPoolRefuses) {
  const auto all = store->Reserve(4 + 64 + 64 * static_cast<int>(store->rows()), 1).value();
  EXPECT_EQ(store->free_rows(), 0u);
  EXPECT_TRUE(absl::IsResourceExhausted(store->Reserve(kTokens, 1).status()));
  EXPECT_TRUE(store->Reserve(10, 1).ok());  // needs no row
}

// Host memory that gives only so many pieces.
class FewAllocations final : public CacheMemory {
 public:
  FewAllocations(CacheMemory& memory, int left) : memory_(memory), left_(left) {}

  std::string name() const override { return memory_.name(); }
  bool on_device() const override { return false; }
  absl::Status Supports(const codec::BlockSpec& spec) const override {
    return memory_.Supports(spec);
  }
  absl::StatusOr<std::byte*> Allocate(std::size_t bytes) override {
    if (left_-- > 0) return memory_.Allocate(bytes);
    return absl::ResourceExhaustedError(absl::StrCat(bytes, " bytes"));
  }
  absl::StatusOr<std::unique_ptr<Pin>> PinLanding(std::span<std::byte> ring) override {
    return memory_.PinLanding(ring);
  }
  absl::StatusOr<std::uint32_t> CopyChunk(std::span<const ChunkPart> parts,
                                          std::span<const std::byte> payload) override {
    return memory_.CopyChunk(parts, payload);
  }
  std::vector<absl::Status> Flush(std::span<const FlushItem> items,
                                  std::size_t sequences) override {
    return memory_.Flush(items, sequences);
  }

 private:
  CacheMemory& memory_;
  int left_;
};

TEST_F(CacheStoreBooksTest, PreparedSequencesAllocateNothingWhenTheyCome) {
  const CacheStoreOptions options{.codec = TestCodec(),
                                  .geometry = kGeometry,
                                  .pool_bytes = std::uint64_t{1} << 20,
                                  .prepared_sequences = 2};
  FewAllocations memory(machine.memory(), 2);  // the pool, and what is prepared
  store = CacheStore::Create(options, memory).value();
  {
    const auto one = AdoptPrompt(kTokens, 100), two = AdoptPrompt(kTokens, 100);
    ExpectSameAsPrefill(*one, kTokens);
    ExpectSameAsPrefill(*two, kTokens);
    EXPECT_TRUE(absl::IsResourceExhausted(store->Reserve(kTokens, 100).status()));
  }
  EXPECT_TRUE(store->Reserve(kTokens, 100).ok());
  store.reset();  // before its memory
  FewAllocations less(machine.memory(), 1);
  const absl::Status refused = CacheStore::Create(options, less).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_NE(refused.message().find("max_sequences"), std::string::npos);
}

TEST_F(CacheStoreBooksTest, APoolWithoutOneRowIsRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      CacheStore::Create({.codec = TestCodec(), .geometry = kGeometry, .pool_bytes = 1000},
                         machine.memory())
          .status()));
}

}  // namespace
}  // namespace kvferry::decode
