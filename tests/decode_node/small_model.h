#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/decode_node/transfer_builder.h"

namespace kvferry::decode {

// Writes a Llama of the shape kGeometry with random weights, as a Hugging Face folder: heads as
// large as attention kernels have them, everything else small.
class SmallModel {
 public:
  static constexpr int kQHeads = 4, kHidden = 64, kInner = 96, kVocabulary = 128;

  static void Write(const std::filesystem::path& folder) {
    std::ofstream(folder / "config.json") << absl::StrCat(
        R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",)",
        R"("rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,)",
        R"("max_position_embeddings": 1024, "eos_token_id": 2, "hidden_size": )", kHidden,
        ", \"intermediate_size\": ", kInner, ", \"vocab_size\": ", kVocabulary,
        ", \"num_attention_heads\": ", kQHeads, ", \"head_dim\": ", kGeometry.head_dim,
        ", \"num_key_value_heads\": ", kGeometry.kv_heads,
        ", \"num_hidden_layers\": ", kGeometry.layers, "}");
    SmallModel model;
    const int q = kQHeads * kGeometry.head_dim, kv = kGeometry.kv_heads * kGeometry.head_dim;
    model.Matrix("model.embed_tokens.weight", kVocabulary, kHidden);
    model.Matrix("lm_head.weight", kVocabulary, kHidden);
    model.Ones("model.norm.weight");
    for (int layer = 0; layer < kGeometry.layers; ++layer) {
      const std::string prefix = absl::StrCat("model.layers.", layer, ".");
      model.Ones(prefix + "input_layernorm.weight");
      model.Ones(prefix + "post_attention_layernorm.weight");
      model.Matrix(prefix + "self_attn.q_proj.weight", q, kHidden);
      model.Matrix(prefix + "self_attn.k_proj.weight", kv, kHidden);
      model.Matrix(prefix + "self_attn.v_proj.weight", kv, kHidden);
      model.Matrix(prefix + "self_attn.o_proj.weight", kHidden, q);
      model.Matrix(prefix + "mlp.gate_proj.weight", kInner, kHidden);
      model.Matrix(prefix + "mlp.up_proj.weight", kInner, kHidden);
      model.Matrix(prefix + "mlp.down_proj.weight", kHidden, kInner);
    }
    const std::string header = absl::StrCat("{", absl::StrJoin(model.entries_, ","), "}");
    const std::uint64_t header_bytes = header.size();
    std::ofstream file(folder / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
    file << header;
    file.write(reinterpret_cast<const char*>(model.values_.data()),
               static_cast<std::streamsize>(model.values_.size() * sizeof(float)));
  }

 private:
  void Matrix(const std::string& name, int rows, int columns) {
    Begin(name, absl::StrCat(rows, ",", columns), std::size_t{1} * rows * columns);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(columns)));
    for (int i = 0; i < rows * columns; ++i) values_.push_back(normal(random_));
  }
  void Ones(const std::string& name) {
    Begin(name, absl::StrCat(kHidden), kHidden);
    values_.insert(values_.end(), kHidden, 1.0f);
  }
  void Begin(const std::string& name, const std::string& shape, std::size_t count) {
    const std::size_t begin = values_.size() * sizeof(float);
    entries_.push_back(absl::StrCat("\"", name, "\":{\"dtype\":\"F32\",\"shape\":[", shape,
                                    "],\"data_offsets\":[", begin, ",",
                                    begin + count * sizeof(float), "]}"));
  }

  std::mt19937 random_{7};
  std::vector<std::string> entries_;
  std::vector<float> values_;
};

}  // namespace kvferry::decode
