#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"
#include "tests/model/exact_attention.h"

// Prompts and decode steps through a Model, for tests that compare logits.
namespace kvferry::model {

inline const std::filesystem::path kGolden = "tests/golden/model";

inline nlohmann::json ReadGolden(const std::string& name) {
  return nlohmann::json::parse(std::ifstream(kGolden / name));
}

inline absl::Status Ignore(int /*layer*/, const codec::KvView& /*kv*/) { return absl::OkStatus(); }

inline std::vector<float> PromptLogits(Model& model, std::span<const std::int32_t> ids,
                                       std::size_t chunk,
                                       const PrefillSession::OnLayer& on_layer = Ignore,
                                       codec::Raw16 type = codec::Raw16::kFp16) {
  auto session = model.StartPrefill(static_cast<int>(ids.size()), type);
  EXPECT_TRUE(session.ok()) << session.status();
  for (std::size_t at = 0; at < ids.size(); at += chunk) {
    const auto part = ids.subspan(at, std::min(chunk, ids.size() - at));
    const bool ahead = at + part.size() < ids.size() && at / chunk % 3 != 2;
    const absl::Status status =
        ahead ? (*session)->RunAhead(part, on_layer) : (*session)->Run(part, on_layer);
    EXPECT_TRUE(status.ok()) << status;
  }
  const auto logits = (*session)->logits();
  return {logits.begin(), logits.end()};
}

inline double LargestDifference(std::span<const float> a, std::span<const float> b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return largest;
}

inline int Argmax(std::span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// A session that went on otherwise before says the same of what follows the first tokens.
inline void ExpectRewindForgets(Model& model, std::span<const std::int32_t> ids,
                                std::span<const float> expected, double bound) {
  const std::size_t begin = ids.size() / 2;
  auto session = model.StartPrefill(static_cast<int>(ids.size()), codec::Raw16::kFp16);
  ASSERT_TRUE(session.ok()) << session.status();
  std::vector<codec::KvView> views;
  ASSERT_TRUE((*session)
                  ->Run(ids.first(begin),
                        [&](int, const codec::KvView& kv) {
                          views.push_back(kv);
                          return absl::OkStatus();
                        })
                  .ok());
  std::vector<std::int32_t> other(ids.rbegin(), ids.rend() - begin);
  ASSERT_TRUE((*session)->Run(other, Ignore).ok());
  EXPECT_GT(LargestDifference((*session)->logits(), expected), bound);
  EXPECT_FALSE((*session)->Rewind(static_cast<int>(ids.size()) + 1).ok());
  EXPECT_FALSE((*session)->Rewind(-1).ok());
  const absl::Status rewound = (*session)->Rewind(static_cast<int>(begin));
  ASSERT_TRUE(rewound.ok()) << rewound;
  int layer = 0;
  ASSERT_TRUE((*session)
                  ->Run(ids.subspan(begin),
                        [&](int, const codec::KvView& kv) {
                          EXPECT_EQ(kv.k, views[layer].k);
                          EXPECT_EQ(kv.v, views[layer++].v);
                          return absl::OkStatus();
                        })
                  .ok());
  EXPECT_LT(LargestDifference((*session)->logits(), expected), bound);
}

// `sequences` caches of the same prompt, then decode steps of all together with given tokens: the
// logits of every step.
inline std::vector<std::vector<float>> DecodeLogits(Model& model,
                                                    std::span<const std::int32_t> prompt,
                                                    std::span<const std::int32_t> next,
                                                    int sequences) {
  ExactAttention attention(model.config(), sequences, codec::Raw16::kBf16);
  PromptLogits(
      model, prompt, prompt.size(),
      [&](int layer, const codec::KvView& kv) {
        for (int i = 0; i < sequences; ++i) attention.Append(layer, i, kv);
        return absl::OkStatus();
      },
      codec::Raw16::kBf16);
  std::vector<std::vector<float>> result;
  for (std::size_t step = 0; step < next.size(); ++step) {
    const std::vector<std::int32_t> tokens(static_cast<std::size_t>(sequences), next[step]);
    const std::vector<std::int32_t> positions(tokens.size(),
                                              static_cast<int>(prompt.size() + step));
    std::vector<float> logits(tokens.size() * static_cast<std::size_t>(model.config().vocabulary));
    const absl::Status status = model.DecodeStep(tokens, positions, attention, logits);
    EXPECT_TRUE(status.ok()) << status;
    result.push_back(std::move(logits));
  }
  return result;
}

// The tiny random models of tests/golden/model, one of every architecture: file, and key in
// tiny.json.
inline auto TinyModels() {
  return ::testing::Values(std::pair("llama2", "llama2"), std::pair("llama2.gguf", "llama2"),
                           std::pair("llama3", "llama3"), std::pair("mistral", "mistral"),
                           std::pair("qwen2", "qwen2"), std::pair("qwen2.gguf", "qwen2"),
                           std::pair("qwen3_sharded", "qwen3_sharded"));
}
inline std::string TinyModelName(
    const ::testing::TestParamInfo<std::pair<const char*, const char*>>& info) {
  std::string name = info.param.first;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

}  // namespace kvferry::model
