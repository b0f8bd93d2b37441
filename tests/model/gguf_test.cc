#include "model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/gguf_builder.h"
#include "tests/model/temp_folder.h"

namespace kvferry::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GgufTest : public ::testing::Test {
 protected:
  absl::StatusOr<GgufFile> Open(std::string_view bytes) {
    return GgufFile::Open(WriteFile(folder_ / "m.gguf", bytes));
  }
  void ExpectRefused(std::string_view bytes, absl::StatusCode code, const std::string& text) {
    const auto file = Open(bytes);
    ASSERT_FALSE(file.ok()) << "expected: " << text;
    EXPECT_EQ(file.status().code(), code) << file.status();
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("m.gguf"));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(text));
  }

  TempFolder folder_;
};

GgufBuilder Sample() {
  return GgufBuilder()
      .String("general.architecture", "llama")
      .Uint32("llama.block_count", 30)
      .Uint64("big", ~0ull)
      .Float32("eps", 0.5f)
      .Bool("flag", true)
      .Strings("tokens", {"a", "", "bc"})
      .Int32s("types", {1, -3})
      .Float32s("factors", {1.5f, 2})
      .Tensor("norm", {2}, 0, GgufBuilder::Raw(1.0f) + GgufBuilder::Raw(2.0f))
      .Tensor("w", {32, 3}, 8, std::string(3 * 34, 'x'));
}

TEST_F(GgufTest, ReadsEveryKindOfValue) {
  const auto file = Open(Sample().Build());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file->String("general.architecture"), "llama");
  EXPECT_EQ(*file->Int("llama.block_count"), 30);
  EXPECT_EQ(*file->Float("llama.block_count"), 30.0);
  EXPECT_EQ(*file->Float("eps"), 0.5);
  EXPECT_TRUE(*file->Bool("flag"));
  EXPECT_THAT(*file->Strings("tokens"), ElementsAre("a", "", "bc"));
  EXPECT_THAT(*file->Ints("types"), ElementsAre(1, -3));
  EXPECT_THAT(*file->Floats("factors"), ElementsAre(1.5, 2));
  EXPECT_TRUE(file->Has("flag"));
  EXPECT_FALSE(file->Has("none"));
}

TEST_F(GgufTest, RefusesWrongAccess) {
  const auto file = Open(Sample().Build());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Int("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file->Int("big").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->Int("eps").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->Ints("eps").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->Ints("tokens").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file->String("tokens").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(file->Bool("eps").status().message()), HasSubstr("eps is float32"));
}

TEST_F(GgufTest, FindsTensorsOutermostFirst) {
  const auto file = Open(Sample().Build());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 2u);
  const StoredTensor* w = file->FindTensor("w");
  ASSERT_NE(w, nullptr);
  EXPECT_EQ(w->type, TensorType::kQ8_0);
  EXPECT_THAT(w->shape, ElementsAre(3, 32));
  EXPECT_EQ(w->data.size(), 3u * 34);
  EXPECT_EQ(w->data[0], 'x');
  EXPECT_EQ(file->FindTensor("v"), nullptr);
}

TEST_F(GgufTest, EveryTruncationIsRefused) {
  const std::string bytes = Sample().Build();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto file = Open(std::string_view(bytes).substr(0, size));
    ASSERT_FALSE(file.ok()) << size;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << file.status();
  }
}

TEST_F(GgufTest, EveryFlippedByteIsReadOrRefused) {
  const std::string bytes = Sample().Build();
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ 0xff);
    const auto file = Open(changed);
    if (!file.ok()) continue;
    for (const StoredTensor& tensor : file->tensors()) {
      EXPECT_EQ(tensor.data.size(), *StoredBytes(tensor.type, tensor.shape));
    }
  }
}

TEST_F(GgufTest, NamesWhatIsWrong) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto loss = absl::StatusCode::kDataLoss;
  std::string bytes = Sample().Build();
  bytes[0] = 'X';
  ExpectRefused(bytes, invalid, "no GGUF file");
  bytes = Sample().Build();
  bytes[4] = 1;
  ExpectRefused(bytes, invalid, "version is 1");
  ExpectRefused(GgufBuilder().Tensor("w", {256}, 12, std::string(144, 'x')).Build(), invalid,
                "tensor w is stored as Q4_K");
  ExpectRefused(GgufBuilder().Tensor("w", {256}, 999, "").Build(), invalid, "ggml type 999");
  ExpectRefused(GgufBuilder().Tensor("w", {31}, 8, "").Build(), invalid, "Q8_0 cannot store");
  ExpectRefused(GgufBuilder().Tensor("w", {1ull << 62, 1ull << 62}, 0, "").Build(), invalid,
                "cannot store");
  ExpectRefused(GgufBuilder().Tensor("w", {}, 0, "").Build(), invalid, "has 0 dimensions");
  ExpectRefused(GgufBuilder().Tensor("w", {1}, 0, "1234").Tensor("w", {1}, 0, "1234").Build(),
                invalid, "tensor w appears twice");
  ExpectRefused(GgufBuilder().TensorAt("w", {1}, 0, ~0ull, "1234").Build(), loss, "tensor w");
  ExpectRefused(GgufBuilder().Uint32("a", 1).Uint32("a", 1).Build(), invalid, "a appears twice");
  ExpectRefused(GgufBuilder().Uint32("general.alignment", 3).Build(), invalid, "power of two");
  const std::string huge = GgufBuilder::Raw(GgufBuilder::kUint32) + GgufBuilder::Raw(~0ull);
  ExpectRefused(GgufBuilder().Entry("a", GgufBuilder::kArray, huge).Build(), loss, "metadata a");
  ExpectRefused(GgufBuilder().Entry("a", 77, "").Build(), invalid, "unknown value type 77");
  ExpectRefused(GgufBuilder().Entry("a", 9, GgufBuilder::Raw(GgufBuilder::kArray)).Build(), invalid,
                "array of arrays");
}

TEST_F(GgufTest, RefusesWhatIsNoFile) {
  EXPECT_EQ(GgufFile::Open((folder_ / "none").string()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open(folder_.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvferry::model
