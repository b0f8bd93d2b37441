#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace kvferry::bench {

// A Llama of two layers with random weights and heads of 64 channels, the least that codecs have,
// as a Hugging Face directory. Its queries and keys are large, so that it matters what attention
// reads.
class TinyModelFolder {
 public:
  static constexpr int kVocabulary = 96;

  explicit TinyModelFolder(const std::filesystem::path& folder) {
    const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                   {"model_type", "llama"},
                                   {"hidden_size", kHidden},
                                   {"intermediate_size", kIntermediate},
                                   {"num_hidden_layers", kLayers},
                                   {"num_attention_heads", kQHeads},
                                   {"num_key_value_heads", 1},
                                   {"head_dim", kHeadDim},
                                   {"vocab_size", kVocabulary},
                                   {"max_position_embeddings", 1024},
                                   {"rms_norm_eps", 1e-6},
                                   {"rope_theta", 10000.0},
                                   {"hidden_act", "silu"},
                                   {"tie_word_embeddings", true},
                                   {"eos_token_id", 2}};
    std::ofstream(folder / "config.json") << config.dump();
    Add("model.embed_tokens.weight", {kVocabulary, kHidden}, 0.3);
    Add("model.norm.weight", {kHidden}, 0);
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string name = "model.layers." + std::to_string(layer) + ".";
      Add(name + "input_layernorm.weight", {kHidden}, 0);
      Add(name + "post_attention_layernorm.weight", {kHidden}, 0);
      Add(name + "self_attn.q_proj.weight", {kQHeads * kHeadDim, kHidden}, 0.2);
      Add(name + "self_attn.k_proj.weight", {kHeadDim, kHidden}, 0.2);
      Add(name + "self_attn.v_proj.weight", {kHeadDim, kHidden}, 0.2);
      Add(name + "self_attn.o_proj.weight", {kHidden, kQHeads * kHeadDim}, 0.1);
      Add(name + "mlp.gate_proj.weight", {kIntermediate, kHidden}, 0.1);
      Add(name + "mlp.up_proj.weight", {kIntermediate, kHidden}, 0.1);
      Add(name + "mlp.down_proj.weight", {kHidden, kIntermediate}, 0.1);
    }
    const std::string header = header_.dump();
    const std::uint64_t header_bytes = header.size();
    std::ofstream file(folder / "model.safetensors", std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
    file << header;
    file.write(reinterpret_cast<const char*>(data_.data()),
               static_cast<std::streamsize>(data_.size() * sizeof(float)));
  }

 private:
  static constexpr int kHidden = 64, kIntermediate = 96, kLayers = 2, kQHeads = 2, kHeadDim = 64;

  // spread 0: all ones.
  void Add(const std::string& name, const std::vector<int>& shape, double spread) {
    std::size_t count = 1;
    for (const int size : shape) count *= static_cast<std::size_t>(size);
    const std::size_t begin = data_.size() * sizeof(float);
    for (std::size_t i = 0; i < count; ++i) {
      data_.push_back(spread == 0 ? 1.0f : static_cast<float>(spread * Normal()));
    }
    header_[name] = {{"dtype", "F32"},
                     {"shape", shape},
                     {"data_offsets", {begin, data_.size() * sizeof(float)}}};
  }

  // Nearly normal, variance 1, the same with every library.
  double Normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(random_() >> 11) * 0x1p-53;
    return sum;
  }

  std::mt19937_64 random_{1};
  std::vector<float> data_;
  nlohmann::json header_;
};

}  // namespace kvferry::bench
