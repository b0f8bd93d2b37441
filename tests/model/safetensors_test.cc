#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/gguf_builder.h"
#include "tests/model/temp_folder.h"

namespace kvferry::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  return GgufBuilder::Raw<std::uint64_t>(header.size()) + header + data;
}

const char kGood[] = R"({"__metadata__":{"format":"pt"},
  "a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},
  "b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";

class SafetensorsTest : public ::testing::Test {
 protected:
  absl::StatusOr<SafetensorsFolder> Open(const std::string& bytes) {
    WriteFile(folder_ / "model.safetensors", bytes);
    return SafetensorsFolder::Open(folder_.path());
  }
  void ExpectRefused(const std::string& bytes, absl::StatusCode code, const std::string& text) {
    const auto opened = Open(bytes);
    ASSERT_FALSE(opened.ok()) << "expected: " << text;
    EXPECT_EQ(opened.status().code(), code) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr("model.safetensors"));
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(text));
  }

  TempFolder folder_;
};

TEST_F(SafetensorsTest, ReadsOneFile) {
  const auto opened = Open(File(kGood, "12345678abcdef"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->tensors().size(), 2u);
  const StoredTensor* b = opened->FindTensor("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->type, TensorType::kBF16);
  EXPECT_THAT(b->shape, ElementsAre(3));
  EXPECT_EQ(std::string(b->data.begin(), b->data.end()), "abcdef");
  EXPECT_EQ(opened->FindTensor("c"), nullptr);
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string bytes = File(kGood, "12345678abcdef");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto opened = Open(bytes.substr(0, size));
    ASSERT_FALSE(opened.ok()) << size;
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss) << opened.status();
  }
}

TEST_F(SafetensorsTest, NamesWhatIsWrong) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto one = [](const std::string& entry) { return File("{\"a\":" + entry + "}", "1234"); };
  ExpectRefused("GGUF\3\1\1\1\1", invalid, "no safetensors file");
  ExpectRefused(File("[1]", ""), invalid, "not a JSON object");
  ExpectRefused(File("{", ""), invalid, "not JSON");
  ExpectRefused(File("{\"a\":" + std::string(1000, '['), ""), invalid, "nested deeper");
  ExpectRefused(one("3"), invalid, "tensor a has no description");
  ExpectRefused(one(R"({"dtype":"I64","shape":[1],"data_offsets":[0,4]})"), invalid,
                "is stored as I64");
  ExpectRefused(one(R"({"shape":[1],"data_offsets":[0,4]})"), invalid, "no dtype");
  ExpectRefused(one(R"({"dtype":"F32","data_offsets":[0,4]})"), invalid, "no shape");
  ExpectRefused(one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), invalid, "no size");
  ExpectRefused(one(R"({"dtype":"F32","shape":[1]})"), invalid, "no data_offsets");
  ExpectRefused(one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), invalid, "end before");
  ExpectRefused(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), invalid,
                "want another number");
  ExpectRefused(one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})"),
                invalid, "want another number");
  ExpectRefused(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
                absl::StatusCode::kDataLoss, "ends at byte 8");
}

TEST_F(SafetensorsTest, RefusesAnIndexThatLies) {
  EXPECT_EQ(SafetensorsFolder::Open(folder_.path()).status().code(), absl::StatusCode::kNotFound);
  const auto refused = [&](const std::string& index, absl::StatusCode code) {
    WriteFile(folder_ / "model.safetensors.index.json", index);
    const auto opened = SafetensorsFolder::Open(folder_.path());
    EXPECT_EQ(opened.status().code(), code) << opened.status();
  };
  WriteFile(folder_ / "m.safetensors", File(kGood, "12345678abcdef"));
  refused("{}", absl::StatusCode::kInvalidArgument);
  refused(R"({"weight_map":{"a":1}})", absl::StatusCode::kInvalidArgument);
  refused(R"({"weight_map":{"a":"../m.safetensors"}})", absl::StatusCode::kInvalidArgument);
  refused(R"({"weight_map":{"c":"m.safetensors"}})", absl::StatusCode::kInvalidArgument);
  refused(R"({"weight_map":{"a":"none.safetensors"}})", absl::StatusCode::kNotFound);
  refused(R"({"weight_map":{"a":"m.safetensors"}})", absl::StatusCode::kOk);
}

}  // namespace
}  // namespace kvferry::model
