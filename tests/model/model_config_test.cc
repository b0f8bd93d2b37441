#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/config_reader.h"
#include "model/weight_files.h"
#include "tests/model/gguf_builder.h"
#include "tests/model/temp_folder.h"

namespace kvferry::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json Llama() {
  return {{"model_type", "llama"},    {"num_hidden_layers", 2},
          {"hidden_size", 64},        {"intermediate_size", 96},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 100},        {"rms_norm_eps", 1e-5},
          {"eos_token_id", 2},        {"max_position_embeddings", 512}};
}

class HuggingFaceConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Read(const Json& json) {
    WriteFile(folder_ / "config.json", json.dump());
    return ReadModelConfig(folder_.path());
  }
  void ExpectRefused(const Json& changes, const std::string& text) {
    Json json = Llama();
    json.update(changes);
    const auto config = Read(json);
    ASSERT_FALSE(config.ok()) << "expected: " << text;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << config.status();
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("config.json"));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(text));
  }

  TempFolder folder_;
};

TEST_F(HuggingFaceConfigTest, ReadsLlama) {
  const auto config = Read(Llama());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rope_base, 10000);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_FALSE(config->rope_scaling.has_value());
  EXPECT_THAT(config->end_tokens, ElementsAre(2));
}

TEST_F(HuggingFaceConfigTest, ReadsLlama3Scaling) {
  Json json = Llama();
  json["rope_theta"] = 500000;
  json["head_dim"] = 32;
  json["rope_scaling"] = {{"rope_type", "llama3"},
                          {"factor", 32},
                          {"low_freq_factor", 1},
                          {"high_freq_factor", 4},
                          {"original_max_position_embeddings", 8192}};
  WriteFile(folder_ / "generation_config.json", R"({"eos_token_id":[2,7]})");
  const auto config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_base, 500000);
  EXPECT_EQ(config->head_dim, 32);
  ASSERT_TRUE(config->rope_scaling.has_value());
  EXPECT_EQ(config->rope_scaling->factor, 32);
  EXPECT_EQ(config->rope_scaling->original_max_context, 8192);
  EXPECT_THAT(config->end_tokens, ElementsAre(2, 7));
}

TEST_F(HuggingFaceConfigTest, QwenIgnoresAWindowThatIsOff) {
  Json json = Llama();
  json["model_type"] = "qwen2";
  json["sliding_window"] = 16;
  json["use_sliding_window"] = false;
  const auto config = Read(json);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->attention_bias);
  json["model_type"] = "qwen3";
  const auto qwen3 = Read(json);
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_TRUE(qwen3->qk_norm);
}

TEST_F(HuggingFaceConfigTest, RefusesByName) {
  ExpectRefused({{"model_type", "gemma"}}, "\"gemma\"");
  ExpectRefused({{"hidden_size", nullptr}}, "hidden_size is missing");
  ExpectRefused({{"hidden_size", "64"}}, "hidden_size is no integer");
  ExpectRefused({{"hidden_size", -1}}, "hidden_size is -1");
  ExpectRefused({{"vocab_size", 1ull << 40}}, "vocab_size is too large");
  ExpectRefused({{"num_hidden_layers", 0}}, "layers is 0");
  ExpectRefused({{"num_attention_heads", 0}}, "num_attention_heads");
  ExpectRefused({{"num_key_value_heads", 3}}, "no multiple");
  ExpectRefused({{"head_dim", 15}}, "odd");
  ExpectRefused({{"rope_scaling", {{"type", "yarn"}}}}, "\"yarn\"");
  ExpectRefused({{"rope_parameters", {{"rope_type", "dynamic"}}}}, "\"dynamic\"");
  ExpectRefused({{"rope_scaling", {{"rope_type", "llama3"}, {"low_freq_factor", 9}}}}, "low");
  ExpectRefused({{"model_type", "mistral"}, {"sliding_window", 128}}, "sliding_window is 128");
  ExpectRefused({{"hidden_act", "gelu"}}, "\"gelu\"");
  ExpectRefused({{"mlp_bias", true}}, "mlp_bias");
  ExpectRefused({{"quantization_config", Json::object()}}, "quantization_config");
  ExpectRefused({{"eos_token_id", 100}}, "eos_token_id has 100");
  ExpectRefused({{"rms_norm_eps", 0}}, "RMS epsilon");
  ExpectRefused({{"layer_types", {"linear_attention"}}}, "linear_attention");
}

GgufBuilder Gguf(const std::string& architecture) {
  return GgufBuilder()
      .String("general.architecture", architecture)
      .Uint32(architecture + ".block_count", 1)
      .Uint32(architecture + ".embedding_length", 64)
      .Uint32(architecture + ".feed_forward_length", 96)
      .Uint32(architecture + ".attention.head_count", 4)
      .Uint32(architecture + ".attention.head_count_kv", 2)
      .Uint32(architecture + ".context_length", 512)
      .Uint32("tokenizer.ggml.eos_token_id", 3)
      .Tensor("token_embd.weight", {64, 10}, 0, std::string(64 * 10 * 4, '\0'));
}

class GgufConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Read(const GgufBuilder& builder) {
    return ReadModelConfig(WriteFile(folder_ / "m.gguf", builder.Build()));
  }
  void ExpectRefused(const GgufBuilder& builder, const std::string& text) {
    const auto config = Read(builder);
    ASSERT_FALSE(config.ok()) << "expected: " << text;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("m.gguf"));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(text));
  }

  TempFolder folder_;
};

TEST_F(GgufConfigTest, ReadsEveryArchitecture) {
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    const auto config = Read(Gguf(architecture).Float32(architecture + ".rope.freq_base", 5e5f));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->architecture, architecture);
    EXPECT_EQ(config->vocabulary, 10);
    EXPECT_EQ(config->head_dim, 16);
    EXPECT_EQ(config->rope_base, 5e5f);
    EXPECT_TRUE(config->tied_embeddings);
    EXPECT_EQ(config->attention_bias, architecture == "qwen2");
    EXPECT_EQ(config->qk_norm, architecture == "qwen3");
    EXPECT_THAT(config->end_tokens, ElementsAre(3));
  }
}

TEST_F(GgufConfigTest, ReadsRopeFactors) {
  std::string factors;
  for (int i = 0; i < 8; ++i) factors += GgufBuilder::Raw(1.0f + i);
  const auto config = Read(Gguf("llama").Tensor("rope_freqs.weight", {8}, 0, factors));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->rope_factors, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  ExpectRefused(Gguf("llama").Tensor("rope_freqs.weight", {4}, 0, factors.substr(0, 16)),
                "4 RoPE factors");
}

TEST_F(GgufConfigTest, RefusesByName) {
  ExpectRefused(Gguf("phi3"), "\"phi3\"");
  ExpectRefused(GgufBuilder(), "general.architecture is missing");
  ExpectRefused(GgufBuilder().String("general.architecture", "llama"), "llama.block_count");
  ExpectRefused(Gguf("llama").String("llama.rope.scaling.type", "yarn"), "\"yarn\"");
  ExpectRefused(Gguf("llama").Uint32("llama.expert_count", 8), "mixture of experts");
  ExpectRefused(Gguf("llama").Uint32("llama.attention.sliding_window", 64), "sliding-window");
  ExpectRefused(Gguf("llama").Uint32("llama.rope.dimension_count", 8), "partial rotation");
  ExpectRefused(Gguf("llama").Uint32("llama.attention.value_length", 8), "value_length");
  ExpectRefused(Gguf("llama").Uint32("tokenizer.ggml.eot_token_id", 10), "eot_token_id is 10");
}

TEST(RopeHashTest, ChangesWithEveryField) {
  const ModelConfig base{.head_dim = 64};
  ModelConfig other = base;
  EXPECT_EQ(base.RopeHash(), other.RopeHash());
  other.rope_base = 500000;
  EXPECT_NE(base.RopeHash(), other.RopeHash());
  other = base;
  other.rope_scaling = Llama3RopeScaling{};
  const std::uint64_t scaled = other.RopeHash();
  EXPECT_NE(base.RopeHash(), scaled);
  other.rope_scaling->factor = 32;
  EXPECT_NE(other.RopeHash(), scaled);
  other = base;
  other.rope_factors = {1, 2};
  EXPECT_NE(base.RopeHash(), other.RopeHash());
}

TEST_F(GgufConfigTest, WeightFilesNameWhatIsMissingOrMisshapen) {
  const auto path = WriteFile(folder_ / "m.gguf", Gguf("llama").Build());
  const auto files = WeightFiles::Open(path);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(files->Read("model.embed_tokens.weight", {10, 64}).ok());
  EXPECT_THAT(std::string(files->Read("model.embed_tokens.weight", {10, 32}).status().message()),
              HasSubstr("token_embd.weight is [10, 64], the configuration wants [10, 32]"));
  EXPECT_THAT(std::string(files->Read("model.layers.3.mlp.up_proj.weight", {1}).status().message()),
              HasSubstr("blk.3.ffn_up.weight is missing"));
}

TEST_F(GgufConfigTest, WeightsHashChangesWithOneBit) {
  std::string bytes = Gguf("llama").Build();
  const auto hash = [&] { return WeightFiles::Open(WriteFile(folder_ / "m.gguf", bytes))->Hash(); };
  const std::uint64_t before = hash();
  EXPECT_EQ(before, hash());
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  EXPECT_NE(before, hash());
}

}  // namespace
}  // namespace kvferry::model
