#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace kvferry::model {

// RoPE frequencies as Llama 3.1 changes them.
struct Llama3RopeScaling {
  float factor = 8;
  float low_freq_factor = 1;
  float high_freq_factor = 4;
  int original_max_context = 8192;
};

// A Llama-family decoder: RMSNorm, rotary embedding, grouped-query attention, SwiGLU.
struct ModelConfig {
  std::string architecture;  // "llama", "mistral", "qwen2", "qwen3"
  int layers = 0;
  int hidden = 0;
  int intermediate = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int vocabulary = 0;
  int max_context_tokens = 0;
  float rms_epsilon = 1e-5f;
  float rope_base = 10000;
  std::optional<Llama3RopeScaling> rope_scaling;
  std::vector<float>
      rope_factors;  // [head_dim / 2] divisors of the frequencies, as GGUF stores them; else empty
  bool tied_embeddings = false;
  bool attention_bias = false;  // of q, k and v (Qwen2)
  bool qk_norm = false;         // RMSNorm per head of q and k (Qwen3)
  std::vector<int> end_tokens;

  // Of every field that changes a rotation.
  std::uint64_t RopeHash() const;
  // kInvalidArgument: a field outside its range, or two that do not fit; names `path` and field.
  absl::Status Validate(const std::string& path) const;
};

}  // namespace kvferry::model
