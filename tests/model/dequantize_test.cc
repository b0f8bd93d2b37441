#include "model/dequantize.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "model/gguf.h"

namespace kvferry::model {
namespace {

TEST(DequantizeTest, EveryTypeEqualsTheGgufPackage) {
  const auto file = GgufFile::Open("tests/golden/model/types.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto expected = nlohmann::json::parse(std::ifstream("tests/golden/model/types.json"));
  ASSERT_EQ(file->tensors().size(), 8u);
  for (const StoredTensor& tensor : file->tensors()) {
    EXPECT_EQ(tensor.name, std::string(Describe(tensor.type).name));
    const auto values = expected.at(tensor.name).get<std::vector<float>>();
    std::vector<float> ours(values.size());
    Dequantize(tensor.type, tensor.data, ours.data());
    EXPECT_EQ(ours, values) << tensor.name;
  }
}

}  // namespace
}  // namespace kvferry::model
