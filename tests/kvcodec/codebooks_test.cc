#include "kvcodec/codebooks.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "kvcodec/open_codec.h"
#include "kvcodec/plan.h"
#include "tests/kvcodec/codebook_samples.h"

namespace kvferry::codec {
namespace {

using testing::HasSubstr;
using testing::Not;

// A file in a folder of its own that goes with it.
class CodebooksFileTest : public testing::Test {
 protected:
  CodebooksFileTest() { std::filesystem::create_directories(folder_); }
  ~CodebooksFileTest() override { std::filesystem::remove_all(folder_); }

  std::string Bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void Write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

  const std::string folder_ = testing::TempDir() + "/kvferry_codebooks_" + std::to_string(getpid());
  const std::string path_ = folder_ + "/books.kvcb";
  const std::shared_ptr<const Codebooks> books_ =
      MakeCodebooks({.layers = 2, .kv_heads = 3, .head_dim = 64, .coupling = {4, 8}}, 1);
};

TEST_F(CodebooksFileTest, ComesBackAsItWas) {
  ASSERT_TRUE(books_->Save(path_).ok());
  const auto again = Codebooks::Open(path_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->shape(), books_->shape());
  EXPECT_EQ((*again)->hash(), books_->hash());
  EXPECT_EQ((*again)->record(), books_->record());
  EXPECT_TRUE(std::equal((*again)->centroids().begin(), (*again)->centroids().end(),
                         books_->centroids().begin(), books_->centroids().end()));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(CodebooksFileTest, AnyDamageIsFound) {
  ASSERT_TRUE(books_->Save(path_).ok());
  const std::string whole = Bytes();
  for (const std::size_t at :
       {std::size_t{9}, std::size_t{33}, whole.size() / 2, whole.size() - 1}) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 4);
    Write(bytes);
    EXPECT_FALSE(Codebooks::Open(path_).ok()) << at;
  }
  Write(whole.substr(0, whole.size() - 7));
  EXPECT_EQ(Codebooks::Open(path_).status().code(), absl::StatusCode::kDataLoss);
  Write(whole + "x");
  EXPECT_EQ(Codebooks::Open(path_).status().code(), absl::StatusCode::kDataLoss);
  std::string other = whole;
  other[4] = 7;
  Write(other);
  EXPECT_THAT(std::string(Codebooks::Open(path_).status().message()), HasSubstr("version is 7"));
  Write("GGUF");
  EXPECT_EQ(Codebooks::Open(path_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Codebooks::Open(path_ + ".no").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CodebooksFileTest, ACodecIsNamedByTheirHash) {
  ASSERT_TRUE(books_->Save(path_).ok());
  const auto codec = OpenCodec("cq-4c8b:recent=128,codebooks=" + path_);
  ASSERT_TRUE(codec.ok()) << codec.status();
  EXPECT_THAT(codec->name, Not(HasSubstr(path_)));
  EXPECT_EQ(codec->codebooks->hash(), books_->hash());
  EXPECT_EQ(codec->window.recent, 128);
  EXPECT_EQ(codec->BitsPerValue(64), 2.0);

  // What a peer reads from the name is the same codec but for the data, which it may have.
  auto of_peer = FindCodec(codec->name);
  ASSERT_TRUE(of_peer.ok()) << of_peer.status();
  EXPECT_EQ(of_peer->Hash(), codec->Hash());
  EXPECT_EQ(of_peer->name, codec->name);
  EXPECT_TRUE(of_peer->NeedsCodebooks());
  EXPECT_EQ(of_peer->Complete({}).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(of_peer->Complete({{books_->hash(), books_}}).ok());
  EXPECT_EQ(of_peer->codebooks, books_);
  EXPECT_NE(FindCodec("cq-4c8b")->Hash(), codec->Hash());

  EXPECT_EQ(OpenCodec("cq-2c8b:codebooks=" + path_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenCodec("cq-4c8b:codebooks=/no/such").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(FindCodec("cq-4c8b:codebooks=" + path_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FindCodec("kivi-2:codebooks=0123456789abcdef").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CodebooksFileTest, AnyOtherContentHasAnotherHash) {
  const CodebookShape shape = books_->shape();
  std::vector<std::uint16_t> centroids(books_->centroids().begin(), books_->centroids().end());
  std::vector<float> frequencies(books_->rotation().frequencies().begin(),
                                 books_->rotation().frequencies().end());
  centroids.back() ^= 1;
  EXPECT_NE(Codebooks::Create(shape, frequencies, centroids, "{}").value()->hash(), books_->hash());
  centroids.back() ^= 1;
  EXPECT_EQ(Codebooks::Create(shape, frequencies, centroids, "{\"a\": 1}").value()->hash(),
            books_->hash());
  frequencies[3] *= 2;
  EXPECT_NE(Codebooks::Create(shape, frequencies, centroids, "{}").value()->hash(), books_->hash());
  centroids[7] = 0x7c00;
  EXPECT_FALSE(Codebooks::Create(shape, frequencies, centroids, "{}").ok());
  centroids.pop_back();
  EXPECT_FALSE(Codebooks::Create(shape, frequencies, centroids, "{}").ok());
}

TEST_F(CodebooksFileTest, AModelOfAnotherShapeIsRefused) {
  Codec codec = FindCodec("cq-4c8b").value();
  codec.codebooks = books_;
  EXPECT_TRUE(codec.FitsModel({2, 3, 64}).ok());
  for (const CacheGeometry& other : {CacheGeometry{3, 3, 64}, {2, 2, 64}, {2, 3, 128}}) {
    EXPECT_EQ(codec.FitsModel(other).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(HandoffBytes(1000, codec, other).ok());
  }
}

class CoupledTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = MakeNamedBackend(GetParam());
};
INSTANTIATE_TEST_SUITE_P(Backends, CoupledTest, testing::ValuesIn(BackendNames()), BackendTestName);

constexpr Coupling kCouplings[] = {{2, 8}, {4, 8}, {8, 8}, {8, 10}, {2, 4}};

// Against a search in fp64 that turns keys by the whole angle at once.
TEST_P(CoupledTest, EveryGroupHasItsNearestCentroid) {
  for (const Coupling& coupling : kCouplings) {
    const CodebookShape shape = {3, 2, 64, coupling};
    const auto books = MakeCodebooks(shape, 3);
    const BlockSpec spec = CoupledSpec(*books, 2);
    const KvSample kv = MakeKv(2, 64, 64, Raw16::kFp16, 5);
    const BlockOrigin origin = {.layer = 2, .token_begin = 708};
    GuardedPage page(PageBytes(spec, 2));
    ASSERT_TRUE(backend_->Quantize(kv.view, spec, origin, page.span()).ok());
    page.Check();
    std::vector<float> k(std::size_t{2} * 64 * 64), v(k.size());
    ASSERT_TRUE(backend_->Dequantize(page.span(), spec, origin, 2, k, v).ok());
    for (int head = 0; head < 2; ++head) {
      PlainHead exact;
      AppendRaw(kv.view, head, exact);
      for (int token = 0; token < 64; ++token) {
        for (const bool is_v : {false, true}) {
          const auto at = static_cast<std::ptrdiff_t>(head * 64 + token) * 64;
          std::vector<double> x(64), got(64);
          for (int c = 0; c < 64; ++c) {
            x[c] = (is_v ? exact.v : exact.k)[token * 64 + c];
            got[c] = (is_v ? v : k)[at + c];
          }
          if (!is_v) TurnBack(*books, 708 + token, x);
          if (!is_v) TurnBack(*books, 708 + token, got);
          const std::uint16_t* by_code = books->Side(2, head, is_v).by_code;
          for (int group = 0; group < 64 / coupling.channels; ++group) {
            double least = INFINITY, mine = 0;
            for (int code = 0; code < coupling.centroids(); ++code) {
              double distance = 0;
              for (int i = 0; i < coupling.channels; ++i) {
                const int c = group * coupling.channels + i;
                const double step =
                    x[c] -
                    FloatFromHalf(
                        by_code[(group * coupling.centroids() + code) * coupling.channels + i]);
                distance += step * step;
              }
              least = std::min(least, distance);
            }
            for (int i = 0; i < coupling.channels; ++i) {
              const int c = group * coupling.channels + i;
              mine += (x[c] - got[c]) * (x[c] - got[c]);
            }
            ASSERT_NEAR(mine, least, 1e-4 * (1 + least))
                << coupling.channels << "c" << coupling.bits << "b head " << head << " token "
                << token << (is_v ? " V" : " K") << " group " << group;
          }
        }
      }
    }
  }
}

TEST_P(CoupledTest, WritesTheBytesOfTheReference) {
  const std::unique_ptr<Backend> scalar = MakeBackend(true);
  for (const Coupling& coupling : kCouplings) {
    for (const int head_dim : {64, 96, 128, 256}) {
      const auto books = MakeCodebooks({1, 2, head_dim, coupling}, 9);
      const BlockSpec spec = CoupledSpec(*books, 0);
      for (const Raw16 type : {Raw16::kFp16, Raw16::kBf16}) {
        const KvSample kv = MakeKv(2, 64, head_dim, type, 5);
        GuardedPage page(PageBytes(spec, 2)), want(PageBytes(spec, 2));
        ASSERT_TRUE(backend_->Quantize(kv.view, spec, {.token_begin = 68}, page.span()).ok());
        ASSERT_TRUE(scalar->Quantize(kv.view, spec, {.token_begin = 68}, want.span()).ok());
        page.Check();
        ASSERT_EQ(std::memcmp(page.data(), want.data(), PageBytes(spec, 2)), 0)
            << coupling.channels << "c" << coupling.bits << "b d " << head_dim;
      }
    }
  }
}

// Blocks stand where sinks and the blocks before them say, in either way to split the work.
TEST_P(CoupledTest, AttentionIsThatOfTheDequantizedValues) {
  for (const Coupling& coupling : kCouplings) {
    for (const int head_dim : {64, 96, 128, 256}) {
      const auto books = MakeCodebooks({1, 2, head_dim, coupling}, 2);
      const BlockSpec spec = CoupledSpec(*books, 0);
      for (const int blocks : {1, 18}) {
        constexpr int kSinks = 5, kQueryHeads = 6;
        const KvSample sinks = MakeKv(2, kSinks, head_dim, Raw16::kFp16, 1);
        const KvSample window = MakeKv(2, 70, head_dim, Raw16::kFp16, 2);
        PlainHead heads[2];
        for (int head = 0; head < 2; ++head) AppendRaw(sinks.view, head, heads[head]);
        std::vector<std::unique_ptr<GuardedPage>> pages;
        std::vector<const std::byte*> pointers;
        const std::size_t side = std::size_t{64} * head_dim;
        for (int block = 0; block < blocks; ++block) {
          const BlockOrigin origin = {.token_begin = kSinks + 64 * block};
          pages.push_back(std::make_unique<GuardedPage>(PageBytes(spec, 2)));
          const KvSample kv = MakeKv(2, 64, head_dim, Raw16::kFp16, 10 + block);
          ASSERT_TRUE(backend_->Quantize(kv.view, spec, origin, pages.back()->span()).ok());
          pointers.push_back(pages.back()->data());
          std::vector<float> k(2 * side), v(2 * side);
          ASSERT_TRUE(backend_->Dequantize(pages.back()->span(), spec, origin, 2, k, v).ok());
          for (int head = 0; head < 2; ++head) {
            const auto begin = static_cast<std::ptrdiff_t>(head * side);
            const auto end = begin + static_cast<std::ptrdiff_t>(side);
            heads[head].k.insert(heads[head].k.end(), k.begin() + begin, k.begin() + end);
            heads[head].v.insert(heads[head].v.end(), v.begin() + begin, v.begin() + end);
          }
        }
        for (int head = 0; head < 2; ++head) AppendRaw(window.view, head, heads[head]);
        std::mt19937 random(17);
        std::normal_distribution<float> normal;
        std::vector<float> q(std::size_t{kQueryHeads} * head_dim), out(q.size());
        for (float& x : q) x = normal(random);
        const SequenceKv sequence = {sinks.view, pointers, window.view};
        const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
        ASSERT_TRUE(backend_
                        ->DecodeAttention({.spec = spec,
                                           .q_heads = kQueryHeads,
                                           .kv_heads = 2,
                                           .scale = scale,
                                           .sequences = {&sequence, 1},
                                           .q = q.data(),
                                           .out = out.data()})
                        .ok());
        for (int head = 0; head < kQueryHeads; ++head) {
          const std::vector<double> want =
              ExactAttention(q.data() + static_cast<std::ptrdiff_t>(head) * head_dim,
                             heads[head / 3], head_dim, scale);
          double error = 0, norm = 0;
          for (int c = 0; c < head_dim; ++c) {
            const double step = out[head * head_dim + c] - want[c];
            error += step * step;
            norm += want[c] * want[c];
          }
          ASSERT_LE(std::sqrt(error), 2e-5 * std::sqrt(norm))
              << coupling.channels << "c" << coupling.bits << "b d " << head_dim << " head " << head
              << " of " << blocks << " blocks";
        }
      }
    }
  }
}

TEST_P(CoupledTest, WithoutCodebooksNothingIsDone) {
  BlockSpec spec = FindCodec("cq-4c8b")->ForLayer(1, 64).value();
  EXPECT_EQ(BlockBytes(spec), 64u * 64 * 2 * 2 / 8);
  EXPECT_EQ(backend_->Supports(spec).code(), absl::StatusCode::kFailedPrecondition);
  const KvSample kv = MakeKv(1, 64, 64, Raw16::kFp16, 5);
  GuardedPage page(PageBytes(spec, 1));
  const absl::Status status = backend_->Quantize(kv.view, spec, {}, page.span());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("codebooks"));
  const auto books = MakeCodebooks({2, 1, 64, {4, 8}}, 1);
  spec = CoupledSpec(*books, 1);
  EXPECT_TRUE(backend_->Quantize(kv.view, spec, {}, page.span()).ok());
  EXPECT_EQ(backend_->Quantize(kv.view, spec, {.kv_head_begin = 1}, page.span()).code(),
            absl::StatusCode::kInvalidArgument);
  spec.layer = 2;
  EXPECT_FALSE(spec.Validate().ok());
}

TEST_P(CoupledTest, ValuesThatAreNoNumbersAreNamed) {
  const auto books = MakeCodebooks({1, 10, 128, {2, 8}}, 1);
  const BlockSpec spec = CoupledSpec(*books, 0);
  for (const BadValue& bad : BadValues()) {
    const KvSample kv = bad.Sample();
    GuardedPage page(PageBytes(spec, 2));
    const absl::Status status = backend_->Quantize(kv.view, spec, kBadValueOrigin, page.span());
    if (std::isfinite(bad.value)) {
      EXPECT_TRUE(status.ok()) << status;
      continue;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.error));
  }
}

}  // namespace
}  // namespace kvferry::codec
